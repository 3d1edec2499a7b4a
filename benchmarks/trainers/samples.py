"""The samples on disk, and as transformers' models take them; imports nothing of Switchyard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

IGNORED = -100
MEAN, DEVIATION = 0.5, 0.25


@dataclass(frozen=True)
class Sample:
    """One image and the text after it.

    Args:
        input_ids: T ids, those of the image's placeholders first.
        answer: Position from which on every token is learned.
        image: (3, H, W) uint8.
    """

    input_ids: list[int]
    answer: int
    image: np.ndarray

    @property
    def labels(self) -> list[int]:
        """T labels."""
        return [IGNORED] * self.answer + self.input_ids[self.answer :]

    @property
    def num_learned(self) -> int:
        """Labels that a loss counts."""
        return len(self.input_ids) - self.answer


def write_samples(folder: Path, samples: Sequence[Sample]) -> None:
    """Write them below a folder."""
    rows = [{"input_ids": sample.input_ids, "answer": sample.answer} for sample in samples]
    (folder / "samples.json").write_text(json.dumps(rows))
    np.save(folder / "images.npy", np.stack([sample.image for sample in samples]))


def read_samples(folder: Path) -> list[Sample]:
    """What :func:`write_samples` wrote."""
    rows = json.loads((folder / "samples.json").read_text())
    images = np.load(folder / "images.npy")
    return [Sample(row["input_ids"], row["answer"], image) for row, image in zip(rows, images, strict=True)]


class Inputs(Dataset[dict[str, Any]]):
    """Samples as a processor of transformers would give them: ids, labels, normalised pixels."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        pixels = (torch.from_numpy(sample.image).float() / 255 - MEAN) / DEVIATION
        return {"input_ids": sample.input_ids, "labels": sample.labels, "pixel_values": pixels}


class Padding:
    """Pads a batch to its longest sample, as every collator of these trainers does.

    Attributes:
        positions: That went through so far, padding included.
    """

    def __init__(self) -> None:
        self.positions = 0

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch: ids, mask, labels, pixels."""
        ids = [torch.tensor(item["input_ids"]) for item in items]
        labels = [torch.tensor(item["labels"]) for item in items]
        batch = {
            "input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
            "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        }
        self.positions += batch["input_ids"].numel()
        return batch
