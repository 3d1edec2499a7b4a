"""What every loader's arm does with a sample, and how an arm is timed.

A sample is a record: a picture or a clip, a question, an answer and a box. An arm gives the media as uint8 pixels or as
floats, tokenises the text, and delivers batches to the trainer's process. Sound is decoded by soundfile in every arm;
pictures by what each library's own documentation has for them, see :class:`Decoder`. The rivals' arms import nothing of
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
_WEIGHED = (4, 20)
"""Batches of the timed epoch after which memory is looked at; the clock stands meanwhile."""


def arguments() -> argparse.Namespace:
    """The command line of an arm."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="folder with tokenizer/ and one folder per kind")
    parser.add_argument("--kind", choices=tuple(MEDIA), default="image")
    parser.add_argument("--prepare", action="store_true", help="write the loader's own format and stop")
    parser.add_argument("--sources", type=int, default=1, help="ours only: the shards as so many sources")
    parser.add_argument("--torchvision", action="store_true", help="webdataset only: torchvision decodes its pictures")
    return parser.parse_args()


class Decoder:
    """Media and text of a sample, decoded; the tokenizer is read in the worker that first needs it.

    Args:
        data: Folder of the corpora.
        kind: "image" or "audio".
        through_pil: Pictures go through PIL, as webdataset, mosaicml-streaming and megatron-energon have them, and not
            through torchvision, as litdata does.
    """

    def __init__(self, data: Path, kind: str, through_pil: bool = False) -> None:
        self.path, self.kind = str(data / "tokenizer" / "tokenizer.json"), kind
        self.through_pil = through_pil
        self._tokenizer: Any = None

    def __call__(self, media: bytes | torch.Tensor, text: bytes | dict[str, Any]) -> dict[str, Any]:
        """``media`` (3, H, W) uint8 or (samples,) float32, ``ids`` of question and answer, and ``box``.

        Args:
            media: The file, or what the loader has decoded already.
            text: The record, likewise.
        """
        record = json.loads(text) if isinstance(text, bytes) else text
        question, answer = (message["content"] for message in record["messages"])
        ids = self.tokenizer.encode(question[-1]["text"] + answer[0]["text"]).ids
        box = record["targets"]["place"]["value"] if self.kind == "image" else [0.0] * 4
        decoded = self.media(media) if isinstance(media, bytes) else media
        return {"media": decoded, "ids": torch.tensor(ids), "box": torch.tensor(box)}

    def media(self, data: bytes) -> torch.Tensor:
        """The media alone."""
        if self.kind == "audio":
            import soundfile

            return torch.from_numpy(soundfile.read(io.BytesIO(data), dtype="float32")[0])
        if self.through_pil:
            from PIL import Image
            from torchvision.transforms.functional import pil_to_tensor

            return pil_to_tensor(Image.open(io.BytesIO(data)).convert("RGB"))
        from torchvision.io import ImageReadMode, decode_jpeg

        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)

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

    The clock starts with the first batch of the timed epoch, and counts the others: some loaders begin every epoch
    anew, and some are one stream whose workers have gone on meanwhile.

    Args:
        epoch: Starts an epoch of stacked media.
        package: The loader's, for its version.
    """
    for _ in epoch():
        pass
    batches = epoch()
    first, total = fingerprint(next(batches))
    started, samples, memory = time.perf_counter(), first, 0.0
    for number, media in enumerate(batches, 1):
        count, value = fingerprint(media)
        samples, total = samples + count, total + value
        if number in _WEIGHED:
            paused = time.perf_counter()
            memory = max(memory, resident_mib())
            started += time.perf_counter() - paused
    seconds = time.perf_counter() - started
    result = {
        "samples_per_second": (samples - first) / seconds,
        "samples": samples,
        "fingerprint": total,
        "memory_mib": memory,
        "versions": {name: _version(name) for name in ("torch", "torchvision", package)},
    }
    print(json.dumps(result), flush=True)


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
