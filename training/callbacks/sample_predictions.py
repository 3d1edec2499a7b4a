"""What the model answers to a few held-out samples at every validation, with pictures."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from training.processes.sharding import is_sharded


class SamplePredictions(Callback):
    """Ask the model, free-running, a few samples of the validation data, and show its answers beside the references.

    A page per validation, ``samples/step-00000200.html`` under the root, holds all that it shows; TensorBoard gets the
    words and the pictures. The samples are the same every time, spread over the data.

    Args:
        count: Samples.
        max_new_tokens: A reply that has not ended by then is cut.
    """

    def __init__(self, count: int = 12, max_new_tokens: int = 64) -> None:
        if count < 1:
            raise ValueError(f"SamplePredictions: expected at least one sample, got {count}")
        self.count, self.max_new_tokens = count, max_new_tokens

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a run without anything to ask.

        Raises:
            ValueError: Naming the key.
        """
        from data.datamodule import PackedDataModule

        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, PackedDataModule) or not data.val_sources:
            raise ValueError("SamplePredictions: expected data.init_args.val_sources to ask samples of, got none")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask and write."""
        # Here, since every command line imports this module, and sessions, drawing and decoding take seconds to import.
        from training.callbacks.answers import ask, write_page

        module: Any = pl_module
        generalist, data = module.generalist, trainer.datamodule  # type: ignore[attr-defined]
        if trainer.sanity_checking or not (trainer.is_global_zero or is_sharded(generalist)):
            return
        with trainer.precision_plugin.forward_context(), torch.random.fork_rng():
            answers = ask(generalist, data, self.count, self.max_new_tokens)
        if trainer.is_global_zero:
            write_page(trainer, answers)
