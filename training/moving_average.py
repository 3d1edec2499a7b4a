"""An exponential moving average of the trained weights, in shards where the weights are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.optimizer import local


class MovingAverage(nn.Module):
    """``a ← d · a + (1 - d) · θ`` after every step, for every trained parameter θ.

    It is a module so that checkpoints of every strategy hold it; Lightning's own callback keeps a second whole model,
    which cannot be sharded.

    Args:
        module: Whose trained parameters are averaged; they are the first values.
        decay: d; in the first steps ``(1 + step) / (10 + step)`` where that is smaller, so that the beginning is
            forgotten.

    Raises:
        ValueError: If d is not between 0 and 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"model.init_args.average_decay: expected a number between 0 and 1, got {decay}")
        self.decay = decay
        self.averages = nn.ParameterDict(
            {
                name.replace(".", "/"): nn.Parameter(parameter.detach().clone(), requires_grad=False)
                for name, parameter in module.named_parameters()
                if parameter.requires_grad
            }
        )

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the present weights.

        Args:
            module: The one whose parameters are averaged.
            step: Counted from 0.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = self._pairs(module)
        torch._foreach_lerp_([a for a, _ in pairs], [p for _, p in pairs], 1 - decay)

    @contextmanager
    def in_place_of(self, module: nn.Module) -> Iterator[None]:
        """Let a module have the averages for its parameters."""
        self.swap(module)
        try:
            yield
        finally:
            self.swap(module)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange averages and parameters; twice is as before."""
        for average, parameter in self._pairs(module):
            own = parameter.clone()
            parameter.copy_(average)
            average.copy_(own)

    def _pairs(self, module: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Averages and parameters, of shards what this process has: all that is done to them is elementwise."""
        parameters = dict(module.named_parameters())
        return [
            (local(average.detach()), local(parameters[name.replace("/", ".")].detach()))
            for name, average in self.averages.items()
        ]
