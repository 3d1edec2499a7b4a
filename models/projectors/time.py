"""When a frame is shown, added to its tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from layers.layout import Layout
from models.projectors.projector import Projector

FREQUENCIES = 16
SHORTEST, LONGEST = 0.1, 3600.0
"""Seconds: periods of the fastest and of the slowest wave."""


class TimedProjector(Projector):
    """Another projector, whose tokens of a video's frame also say when it is shown.

    Sines and cosines of the frame's seconds, through a linear layer that begins at zero: a model that was trained on
    still images begins as it is. Items without a time are left alone.

    Args:
        projector: The projector of images.
        output_size: Width of its tokens.
    """

    def __init__(self, projector: Projector, output_size: int) -> None:
        super().__init__()
        self.projector = projector
        self.token_rule = projector.token_rule
        self.time = nn.Linear(2 * FREQUENCIES, output_size)
        nn.init.zeros_(self.time.weight)
        nn.init.zeros_(self.time.bias)
        periods = torch.logspace(math.log10(SHORTEST), math.log10(LONGEST), FREQUENCIES)
        self.register_buffer("rates", 2 * math.pi / periods, persistent=False)

    def forward(self, hidden_states: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        """Project, and add the times."""
        tokens, projected = self.projector(hidden_states, layout)
        seconds = torch.tensor([item.seconds or 0.0 for item in layout.items], device=tokens.device)
        timed = torch.tensor([item.seconds is not None for item in layout.items], device=tokens.device)
        assert isinstance(self.rates, Tensor)
        angles = seconds[:, None] * self.rates
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.time.weight.dtype)
        added = self.time(waves) * timed[:, None]
        lengths = torch.tensor(projected.lengths, device=tokens.device)
        return tokens + added.repeat_interleave(lengths, dim=0), projected
