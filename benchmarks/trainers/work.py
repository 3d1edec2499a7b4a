"""What a trainer's arm does: the loss of all samples before training, or one epoch on the clock.

The rivals' arms import nothing of Switchyard, which would count as their memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # arms are started as scripts

from benchmarks.arms import peak_mib
from benchmarks.trainers.samples import Sample, read_samples

BATCH = 8
"""Samples of a rival's step."""
LEARNING_RATE, MAX_GRAD_NORM = 1e-4, 1.0


@dataclass(frozen=True)
class Epoch:
    """What one pass over the samples took.

    Args:
        seconds: From asking for the first batch to the end of the last optimizer step.
        steps: Optimizer steps.
        positions: Of the language model, padding included.
    """

    seconds: float
    steps: int
    positions: int


class Way(ABC):
    """One way to train the model.

    Args:
        folder: With the model and the samples.
        order: How samples are put together: "random", "grouped" by length, or "packed".
        precision: "bf16-mixed" or "32-true".
    """

    packages: tuple[str, ...] = ("torch",)

    def __init__(self, folder: Path, order: str, precision: str) -> None:
        self.folder, self.order, self.precision = folder, order, precision

    @abstractmethod
    def loss(self, samples: Sequence[Sample]) -> float:
        """The mean loss over the learned tokens of all samples, in float32, as this way computes it for training."""

    @abstractmethod
    def train(self, samples: Sequence[Sample]) -> Epoch:
        """Train one epoch."""

    def facts(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """What else is to be known, found out after training."""
        return {}


def measure(way: Way, samples: Sequence[Sample], warm_up: int) -> dict[str, Any]:
    """Train on some samples to warm up, then on the others on the clock."""
    way.train(samples[:warm_up])
    gc.collect()
    timed = samples[warm_up:]
    epoch = way.train(timed)
    peak = peak_mib()
    useful = sum(len(sample.input_ids) for sample in timed)
    return {
        "seconds": epoch.seconds,
        "steps": epoch.steps,
        "useful_tokens": useful,
        "useful_tokens_per_second": useful / epoch.seconds,
        "useful_percent": 100 * useful / epoch.positions,
        "peak_mib": peak,
        **way.facts(timed),
    }


def main(kind: type[Way]) -> None:
    """Print what an arm is asked for."""
    parser = argparse.ArgumentParser(description=kind.__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--part", choices=("loss", "epoch"), required=True)
    parser.add_argument("--order", choices=("random", "grouped", "packed"), required=True)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--warm-up", type=int, default=2 * BATCH)
    given = parser.parse_args()
    samples = read_samples(given.folder)
    way = kind(given.folder, given.order, given.precision)
    values: dict[str, Any] = {}
    if given.part == "loss":
        values["loss"] = way.loss(samples)
    else:
        values |= measure(way, samples, given.warm_up)
    values["versions"] = {name: version(name) for name in way.packages}
    print(json.dumps(values))
