"""What every loader's arm does with a sample, and how an arm is timed.

A sample is a picture or a clip, a question, an answer and a box. An arm decodes the media to uint8 pixels or to floats,
tokenises the text with the same tokenizer, and delivers batches (or packs) to the trainer's process. It imports nothing
of Switchyard, so that it runs in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

BATCH = 64
WORKERS = 2
SIDE = 224


def arguments() -> argparse.Namespace:
    """``--data DIR --kind image|audio``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kind", choices=("image", "audio"), default="image")
    return parser.parse_args()


class Decoder:
    """Media and text of a sample, decoded; the tokenizer is read in the worker that first needs it."""

    def __init__(self, data: Path, kind: str) -> None:
        self.path, self.kind, self._tokenizer = str(data / "tokenizer.json"), kind, None

    def __call__(self, media: bytes, text: bytes) -> dict[str, Any]:
        """``pixels`` (3, H, W) uint8 or ``waveform`` (samples,) float32, ``ids`` and ``box``."""
        fields = json.loads(text)
        ids = self.tokenizer.encode(fields["question"] + fields["answer"]).ids
        return {**self.media(media), "ids": torch.tensor(ids), "box": torch.tensor(fields["box"])}

    def media(self, data: bytes) -> dict[str, torch.Tensor]:
        """The media alone."""
        if self.kind == "image":
            from torchvision.io import ImageReadMode, decode_jpeg

            return {"pixels": decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)}
        import io

        import soundfile

        return {"waveform": torch.from_numpy(soundfile.read(io.BytesIO(data), dtype="float32")[0])}

    @property
    def tokenizer(self) -> Any:
        """Rust's tokenizer."""
        if self._tokenizer is None:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(self.path)
        return self._tokenizer

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokenizer": None}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch: media stacked, ids padded."""
    name = "pixels" if "pixels" in samples[0] else "waveform"
    ids = torch.nn.utils.rnn.pad_sequence([sample["ids"] for sample in samples], batch_first=True)
    return {
        "media": torch.stack([sample[name] for sample in samples]),
        "ids": ids,
        "box": torch.stack([sample["box"] for sample in samples]),
        "tokens": sum(len(sample["ids"]) for sample in samples),
    }


def checksum(batch: dict[str, Any]) -> tuple[int, int, int]:
    """(samples, tokens, a sum over a pixel or sample of each): the same for every loader over one epoch."""
    media = batch["media"]
    corner = media[:, :, 7, 11].long().sum() if media.ndim == 4 else (media[:, 1000] * 2**15).long().sum()
    return len(media), batch["tokens"], int(corner)


def measure(
    epoch: Callable[[], Iterator[dict[str, Any]]], package: str, check: Callable[[Any], tuple[int, int, int]] = checksum
) -> None:
    """Go through one epoch to warm up and one to be timed; print what came out as JSON."""
    for _ in epoch():
        pass
    started, totals = time.perf_counter(), (0, 0, 0)
    for batch in epoch():
        totals = tuple(total + part for total, part in zip(totals, check(batch), strict=True))  # type: ignore[assignment]
    seconds = time.perf_counter() - started
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    result = {
        "samples_per_second": totals[0] / seconds,
        "samples": totals[0],
        "tokens": totals[1],
        "corner": totals[2],
        "memory_mib": (own + WORKERS * children) / 1024,
        "versions": {name: _version(name) for name in ("torch", "torchvision", package)},
    }
    print(json.dumps(result))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"
