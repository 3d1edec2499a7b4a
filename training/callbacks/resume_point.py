"""A resume point: where an interrupted run goes on from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

LAST_CHECKPOINT = "last.ckpt"


class ResumePoint(Checkpoint):
    """Write ``last.ckpt`` into the trainer's root every so many steps, replacing it only when the new one is whole.

    Args:
        every_n_steps: Optimizer steps between two of them.
    """

    def __init__(self, every_n_steps: int = 200) -> None:
        self.every_n_steps = every_n_steps
        self._saved_step = -1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where a step ended, so that a file never holds half a step."""
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step != self._saved_step and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._saved_step = step
            last = Path(trainer.default_root_dir) / LAST_CHECKPOINT
            partial = last.with_suffix(".partial")
            trainer.save_checkpoint(partial, weights_only=False)
            if trainer.is_global_zero:
                os.replace(partial, last)
