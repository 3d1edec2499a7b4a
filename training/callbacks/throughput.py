"""How fast useful tokens go through."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from layers.batch import PADDING, Batch, Step


class Throughput(Callback):
    """Log useful tokens per second, the share of time spent waiting for data, how full the packs are, and what was bad.

    Args:
        every_n_steps: Steps over which the figures are averaged.
    """

    def __init__(self, every_n_steps: int = 20) -> None:
        self.every_n_steps = every_n_steps
        self._begin()
        self._batch_ended: float | None = None
        self._quarantined = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the time since the last step ended as waiting for data."""
        if self._batch_ended is not None:
            self._waited += time.perf_counter() - self._batch_ended

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count tokens, and log every so many steps."""
        if isinstance(batch, Step):
            self._tokens += sum(_useful_tokens(pack) for pack in batch.packs)
            self._samples += sum(sum(key != PADDING for key in pack.keys) for pack in batch.packs)
            self._packs += len(batch.packs)
            self._quarantined += batch.quarantined
        self._steps += 1
        if self._steps == self.every_n_steps:
            elapsed = time.perf_counter() - self._started
            values = {
                "speed/useful_tokens_per_second": self._tokens / elapsed,
                "speed/steps_per_second": self._steps / elapsed,
                "speed/data_wait": self._waited / elapsed,
                "data/quarantined": float(self._quarantined),
            }
            room = getattr(getattr(trainer, "datamodule", None), "max_tokens", None)
            if self._packs and room:
                values["data/unused_room"] = 1 - self._tokens / (self._packs * room)
                values["data/samples_per_pack"] = self._samples / self._packs
            pl_module.log_dict(values)
            self._begin()
        self._batch_ended = time.perf_counter()

    def _begin(self) -> None:
        self._started = time.perf_counter()
        self._tokens = self._steps = self._samples = self._packs = 0
        self._waited = 0.0


def _useful_tokens(pack: Batch) -> int:
    return sum(length for length, key in zip(pack.segment_lengths, pack.keys, strict=True) if key != PADDING)
