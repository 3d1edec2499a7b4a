"""Progress of a fit: a bar with its figures on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_FIGURES = (
    ("train/token", "loss {:.3f}"),
    ("train/loss", "loss {:.3f}"),
    ("speed/useful_tokens_per_second", "{:,.0f} tokens/s"),
    ("data/unused_room", "padding {:.0%}"),
    ("speed/data_wait", "data {:.0%}"),
    ("speed/mfu", "MFU {:.0%}"),
)
"""Logged value -> how it is told. Padding is room of the packs that holds no sample; data is the time waited for it."""


class StepProgress(ProgressBar):
    """Steps done of steps to do, with loss, useful tokens per second, padding, wait for data and MFU.

    Figures are read every few steps alone, since reading one waits for the device.

    Args:
        every_n_steps: Steps between two readings.
        every_n_seconds: Between two lines where the output is no terminal.
    """

    def __init__(self, every_n_steps: int = 10, every_n_seconds: float = 30.0) -> None:
        super().__init__()
        self.every_n_steps, self.every_n_seconds = every_n_steps, every_n_seconds
        self.console = Console(file=sys.stderr)
        self._enabled = True
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._told = 0.0

    def disable(self) -> None:
        """Be silent, as on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Speak."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar."""
        if not self._enabled:
            return
        self._told = time.monotonic()
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self.console,
            )
            self._progress.start()
            self._task("training", _num_steps(trainer), completed=trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Go on by a step."""
        step = trainer.global_step
        if not self._enabled:
            return
        due = step % self.every_n_steps == 0
        if self._progress is not None:
            fields: dict[str, Any] = {"figures": figures(trainer.callback_metrics)} if due else {}
            self._progress.update(self._tasks["training"], completed=step, **fields)
        elif time.monotonic() - self._told >= self.every_n_seconds or step == _num_steps(trainer):
            self._told = time.monotonic()
            total = _num_steps(trainer)
            of = f"/{total:,}" if total else ""
            self.console.print(f"step {step:,}{of}  {figures(trainer.callback_metrics)}", highlight=False)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open a bar of the held-out packs."""
        if self._progress is not None:
            batches = sum(int(count) for count in trainer.num_val_batches)
            self._task("validation", batches)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Go on by a pack."""
        if self._progress is not None and "validation" in self._tasks:
            self._progress.advance(self._tasks["validation"])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take it away; tell the losses."""
        if self._progress is not None and "validation" in self._tasks:
            self._progress.remove_task(self._tasks.pop("validation"))
        if self._enabled and not trainer.sanity_checking:
            losses = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
            told = "  ".join(f"{name.removeprefix('val/')} {float(value):.3f}" for name, value in losses.items())
            self.console.print(f"step {trainer.global_step:,}, held out:  {told}", highlight=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close, so that the message stands below the bar."""
        self._close()

    def _task(self, name: str, total: int | None, completed: int = 0) -> None:
        assert self._progress is not None
        self._tasks[name] = self._progress.add_task(name, total=total, completed=completed, figures="")

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._tasks.clear()


def figures(values: Mapping[str, Any]) -> str:
    """What is known of loss and speed, in words."""
    told = [(words, float(values[name])) for name, words in _FIGURES if name in values]
    return "  ".join(words.format(value) for words, value in told if value or "tokens" not in words)


def _num_steps(trainer: L.Trainer) -> int | None:
    return trainer.max_steps if trainer.max_steps > 0 else None
