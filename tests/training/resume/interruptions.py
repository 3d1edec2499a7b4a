"""A callback that does to a run what may happen to it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer


class Interrupt(Callback):
    """After so many steps: send this process a signal, spoil a weight, or kill a data worker."""

    def __init__(self, after_step: int, how: str) -> None:
        self.after_step, self.how = after_step, how

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self.after_step:
            return
        if self.how.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[self.how])
        elif self.how == "nan":
            with torch.no_grad():
                next(p for p in pl_module.parameters() if p.requires_grad).fill_(torch.nan)
        elif self.how == "worker":
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGKILL)
                worker.join()
