"""Arm: transformers' Trainer, random order or grouped by length."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # arms are started as scripts

from benchmarks.trainers.samples import Inputs, Padding, Sample
from benchmarks.trainers.work import BATCH, LEARNING_RATE, MAX_GRAD_NORM, Epoch, Way, main

ORDERS = {"random": "random", "grouped": "group_by_length"}


class Clock(TrainerCallback):
    """When the epoch began, and when its last step was over."""

    def __init__(self) -> None:
        self.started = self.ended = 0.0

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Take the time."""
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Take the time."""
        self.ended = time.perf_counter()


class TransformersWay(Way):
    """transformers' Trainer as it comes, but for what the arms share: batch, precision, learning rate."""

    packages: tuple[str, ...] = ("torch", "transformers", "accelerate")

    def __init__(self, folder: Path, order: str, precision: str) -> None:
        super().__init__(folder, order, precision)
        self.model = LlavaForConditionalGeneration.from_pretrained(folder / "theirs", dtype=torch.float32)
        self.padding = Padding()

    def loss(self, samples: Sequence[Sample]) -> float:
        """Through the trainer's own loss, batch by batch."""
        count = torch.tensor(sum(sample.num_learned for sample in samples))
        items = Inputs(samples)
        with tempfile.TemporaryDirectory() as scratch:
            trainer = self.make_trainer(items, scratch, "32-true")
            self.model.train()
            batches = [range(start, min(start + BATCH, len(items))) for start in range(0, len(items), BATCH)]
            parts = [self.padding([items[index] for index in batch]) for batch in batches]
            total = 0.0
            for part in parts:
                loss: Any = trainer.compute_loss(self.model, part, num_items_in_batch=count)
                total += float(loss.detach())
            return total

    def train(self, samples: Sequence[Sample]) -> Epoch:
        """One epoch, without checkpoints."""
        clock, before = Clock(), self.padding.positions
        with tempfile.TemporaryDirectory() as scratch:
            trainer = self.make_trainer(Inputs(samples), scratch, self.precision, [clock])
            trainer.train()
        return Epoch(clock.ended - clock.started, trainer.state.global_step, self.padding.positions - before)

    def make_trainer(
        self, items: Inputs, scratch: str, precision: str, callbacks: list[TrainerCallback] | None = None
    ) -> Trainer:
        """A trainer of its own for every epoch."""
        arguments = TrainingArguments(**self.settings(scratch, precision))
        return Trainer(
            model=self.model,
            args=arguments,
            data_collator=self.padding,
            train_dataset=items,
            callbacks=callbacks,
        )

    def settings(self, scratch: str, precision: str) -> dict[str, Any]:
        """Arguments of the trainer."""
        return {
            "output_dir": scratch,
            "num_train_epochs": 1,
            "per_device_train_batch_size": BATCH,
            "train_sampling_strategy": ORDERS[self.order],
            "learning_rate": LEARNING_RATE,
            "max_grad_norm": MAX_GRAD_NORM,
            "bf16": precision == "bf16-mixed",
            "use_cpu": True,
            "remove_unused_columns": False,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }


if __name__ == "__main__":
    main(TransformersWay)
