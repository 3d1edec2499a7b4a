"""A callback that says when the first training step is over."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback

SAID = "the first training step is over"


class FirstStep(Callback):
    """Print :data:`SAID` after the first step."""

    def __init__(self) -> None:
        self._said = False

    def on_train_batch_end(self, *_: Any) -> None:
        """Say it once."""
        if not self._said:
            print(f"\n{SAID}", flush=True)
            self._said = True
