"""Arm: a plain LightningModule around transformers' model, padded batches in random order."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # arms are started as scripts

from benchmarks.trainers.samples import Inputs, Padding, Sample
from benchmarks.trainers.work import BATCH, LEARNING_RATE, MAX_GRAD_NORM, Epoch, Way, main


class Clock(Callback):
    """When the epoch began, and when its last step was over."""

    def __init__(self) -> None:
        self.started = self.ended = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        """Take the time."""
        self.started = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Take the time."""
        self.ended = time.perf_counter()


class Plain(LightningModule):
    """The model's own loss, AdamW."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The mean loss of a batch."""
        loss: Tensor = self.model(**batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, fused."""
        return torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE, fused=True)

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Clip here: under bf16-mixed Lightning refuses it with a fused optimizer."""
        torch.nn.utils.clip_grad_norm_(self.parameters(), MAX_GRAD_NORM)


class LightningWay(Way):
    """Lightning's Trainer as it comes, without checkpoints."""

    packages = ("torch", "lightning", "transformers")

    def __init__(self, folder: Path, order: str, precision: str) -> None:
        super().__init__(folder, order, precision)
        self.module = Plain(LlavaForConditionalGeneration.from_pretrained(folder / "theirs", dtype=torch.float32))

    def loss(self, samples: Sequence[Sample]) -> float:
        """The batches' means, weighted by what they learn."""
        self.module.train()
        total = 0.0
        for start in range(0, len(samples), BATCH):
            part = samples[start : start + BATCH]
            inputs = Inputs(part)
            batch = Padding()([inputs[place] for place in range(len(part))])
            total += float(self.module.training_step(batch, 0).detach()) * sum(sample.num_learned for sample in part)
        return total / sum(sample.num_learned for sample in samples)

    def train(self, samples: Sequence[Sample]) -> Epoch:
        """One epoch."""
        clock, padding = Clock(), Padding()
        torch.manual_seed(0)
        loader = DataLoader(Inputs(samples), BATCH, shuffle=True, collate_fn=padding)
        with tempfile.TemporaryDirectory() as scratch:
            trainer = make_trainer(self.precision, scratch, clock, max_epochs=1)
            trainer.fit(self.module, loader)
        return Epoch(clock.ended - clock.started, trainer.global_step, padding.positions)


def make_trainer(precision: str, scratch: str, clock: Clock, **length: Any) -> Trainer:
    """A trainer that only trains."""
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(
        accelerator="cpu",
        precision=precision,  # type: ignore[arg-type]
        callbacks=[clock],
        default_root_dir=scratch,
        logger=False,
        **quiet,
        **length,
    )


if __name__ == "__main__":
    main(LightningWay)
