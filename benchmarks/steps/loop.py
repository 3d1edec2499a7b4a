"""One arm: the same steps by Lightning's trainer, or by a loop that holds only what a step needs."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from benchmarks.steps.plain import take_steps
from benchmarks.steps.workload import make_recipe, make_steps
from layers.batch import Step
from training.callbacks import ResumePoint, Throughput
from training.recipe import Recipe

WARM_UP = 5


class Clock(Callback):
    """When the warm-up was over, and when all was."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Take the time."""
        self.times.append(time.perf_counter())


def by_lightning(recipe: Recipe, steps: list[Step], folder: Path) -> float:
    """Seconds of the steps after the warm-up, with a log, a resume point and figures of throughput as in a real run."""
    clock = Clock()
    trainer = Trainer(
        max_steps=len(steps),
        accelerator="cpu",
        logger=CSVLogger(folder),
        callbacks=[Throughput(), ResumePoint(10 * len(steps)), clock],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(recipe, DataLoader(cast(Any, steps), batch_size=None))
    return clock.times[-1] - clock.times[WARM_UP - 1]


def by_hand(recipe: Recipe, steps: list[Step]) -> float:
    """Seconds of the same steps."""
    times = take_steps(recipe, steps)
    return times[-1] - times[WARM_UP]


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("arm", choices=("lightning", "plain"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=1024)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        recipe = make_recipe(Path(name))
        steps = make_steps(recipe.plan(), [[args.tokens // 8] * 8] * args.steps)
        torch.manual_seed(0)
        seconds = by_lightning(recipe, steps, Path(name)) if args.arm == "lightning" else by_hand(recipe, steps)
        sums = sum(float(parameter.detach().double().sum()) for parameter in recipe.generalist.parameters())
    measured = {
        "milliseconds_per_step": 1000 * seconds / (args.steps - WARM_UP),
        "sum_of_weights": sums,
        "versions": {package: version(package) for package in ("torch", "lightning")},
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
