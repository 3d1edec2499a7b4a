"""How fast useful tokens go through, and what share of the machine's best that is."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from layers.batch import PADDING, Batch, Step
from training.flops import Arithmetic, measure_peak, products_type


class Throughput(Callback):
    """Log useful tokens per second, MFU, the time spent waiting for data, how full the packs are, and what was bad.

    MFU is the arithmetic that the samples need (:class:`training.flops.Arithmetic`) over what the device does at best
    in the trainer's precision: a matrix product that is timed when the fit starts. Figures are of one
    device; padding counts for nothing.

    Args:
        every_n_steps: Steps over which the figures are averaged.
        peak: Operations per second to measure against instead, such as 989e12.
    """

    def __init__(self, every_n_steps: int = 20, peak: float | None = None) -> None:
        self.every_n_steps = every_n_steps
        self.peak = peak
        self._arithmetic: Arithmetic | None = None
        self._begin()
        self._batch_ended: float | None = None
        self._quarantined = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure what the device does at best."""
        generalist = getattr(pl_module, "generalist", None)
        if generalist is not None:
            self._arithmetic = Arithmetic(generalist)
            if self.peak is None:
                self.peak = measure_peak(pl_module.device, products_type(str(trainer.precision)))
        self._begin()

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
            self._tokens += sum(useful_tokens(pack) for pack in batch.packs)
            self._samples += sum(sum(key != PADDING for key in pack.keys) for pack in batch.packs)
            self._packs += len(batch.packs)
            self._quarantined += batch.quarantined
            if self._arithmetic is not None:
                self._operations += sum(self._arithmetic.of(pack) for pack in batch.packs)
        self._steps += 1
        if self._steps == self.every_n_steps:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self._log(trainer, pl_module, time.perf_counter() - self._started)
            self._begin()
        self._batch_ended = time.perf_counter()

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, elapsed: float) -> None:
        values = {
            "speed/useful_tokens_per_second": self._tokens / elapsed,
            "speed/steps_per_second": self._steps / elapsed,
            "speed/data_wait": self._waited / elapsed,
            "data/quarantined": float(self._quarantined),
        }
        if self._arithmetic is not None and self.peak is not None:
            values["speed/mfu"] = self._operations / elapsed / self.peak
        room = getattr(getattr(trainer, "datamodule", None), "max_tokens", None)
        if self._packs and room:
            values["data/unused_room"] = 1 - self._tokens / (self._packs * room)
            values["data/samples_per_pack"] = self._samples / self._packs
        pl_module.log_dict(values)

    def _begin(self) -> None:
        self._started = time.perf_counter()
        self._tokens = self._steps = self._samples = self._packs = 0
        self._waited = self._operations = 0.0


def useful_tokens(pack: Batch) -> int:
    """Tokens of a pack that are no padding."""
    return sum(length for length, key in zip(pack.segment_lengths, pack.keys, strict=True) if key != PADDING)
