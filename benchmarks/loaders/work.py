"""What every loader's arm does with a sample, and how an arm is timed.

A sample is a record: a picture or a clip, a question, an answer and a box. An arm decodes the media to uint8 pixels or
to floats, tokenises the text, and delivers batches to the trainer's process. The rivals' arms import nothing of
Switchyard, so that each runs in an environment of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

BATCH = 64
WORKERS = 2
MEDIA = {"image": "photo.jpg", "audio": "clip.flac"}
RESOLUTION = 1 << 15


def arguments() -> argparse.Namespace:
    """The command line of an arm."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="folder with tokenizer/ and one folder per kind")
    parser.add_argument("--kind", choices=tuple(MEDIA), default="image")
    parser.add_argument("--prepare", action="store_true", help="write the loader's own format and stop")
    parser.add_argument("--sources", type=int, default=1, help="ours only: the shards as so many sources")
    return parser.parse_args()


class Decoder:
    """Media and text of a sample, decoded; the tokenizer is read in the worker that first needs it."""

    def __init__(self, data: Path, kind: str) -> None:
        self.path, self.kind = str(data / "tokenizer" / "tokenizer.json"), kind
        self._tokenizer: Any = None

    def __call__(self, media: bytes, text: bytes) -> dict[str, Any]:
        """``media`` (3, H, W) uint8 or (samples,) float32, ``ids`` of question and answer, and ``box``."""
        record = json.loads(text)
        question, answer = (message["content"] for message in record["messages"])
        ids = self.tokenizer.encode(question[-1]["text"] + answer[0]["text"]).ids
        box = record["targets"]["place"]["value"] if self.kind == "image" else [0.0] * 4
        return {"media": self.media(media), "ids": torch.tensor(ids), "box": torch.tensor(box)}

    def media(self, data: bytes) -> torch.Tensor:
        """The media alone."""
        if self.kind == "image":
            from torchvision.io import ImageReadMode, decode_jpeg

            return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        import soundfile

        return torch.from_numpy(soundfile.read(io.BytesIO(data), dtype="float32")[0])

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
    return {
        "media": torch.stack([sample["media"] for sample in samples]),
        "ids": torch.nn.utils.rnn.pad_sequence([sample["ids"] for sample in samples], batch_first=True),
        "box": torch.stack([sample["box"] for sample in samples]),
    }


def raw_samples(data: Path, kind: str) -> Iterator[tuple[bytes, bytes]]:
    """(media, record) of every sample of the shards, as bytes."""
    for shard in sorted((data / kind / "tar").glob("*.tar")):
        with tarfile.open(shard) as tar:
            files: dict[str, bytes] = {}
            for member in tar:
                body = tar.extractfile(member)
                assert body is not None
                name = member.name.split(".", 1)[1]
                files[name] = body.read()
                if len(files) == 2:
                    yield files[MEDIA[kind]], files["json"]
                    files = {}


def fingerprint(media: torch.Tensor) -> tuple[int, int]:
    """(samples, a sum over one value of each): after an epoch equal for all loaders that lose and double nothing."""
    values = media[:, :, 7, 11].long() if media.ndim == 4 else (media[:, 1000] * RESOLUTION).round().long()
    return len(media), int(values.sum())


def measure(epoch: Callable[[], Iterator[torch.Tensor]], package: str) -> None:
    """Go through one epoch to warm up and one to be timed; print what came out as JSON.

    Args:
        epoch: Starts an epoch of stacked media.
        package: The loader's, for its version.
    """
    for _ in epoch():
        pass
    started, samples, total, memory = time.perf_counter(), 0, 0, 0.0
    for number, media in enumerate(epoch()):
        count, value = fingerprint(media)
        samples, total = samples + count, total + value
        if number == 20:
            paused = time.perf_counter()
            memory = resident_mib()
            started += time.perf_counter() - paused
    seconds = time.perf_counter() - started
    result = {
        "samples_per_second": samples / seconds,
        "samples": samples,
        "fingerprint": total,
        "memory_mib": memory,
        "versions": {name: _version(name) for name in ("torch", "torchvision", package)},
    }
    print(json.dumps(result))


def resident_mib() -> float:
    """Resident memory of this process and its workers, pages that they share counted once."""
    pending, total = [os.getpid()], 0
    while pending:
        process = pending.pop()
        folder = Path("/proc") / str(process)
        try:
            rows = (folder / "smaps_rollup").read_text().splitlines()
            pending += [int(child) for task in folder.glob("task/*/children") for child in task.read_text().split()]
        except OSError:
            continue  # ended meanwhile
        total += next(int(row.split()[1]) for row in rows if row.startswith("Pss:"))
    return total / 1024


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"
