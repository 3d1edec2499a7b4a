"""WavLLM's connectors: every branch of a speech encoder is slowed down and adapted by itself, then all are joined."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.layout import Layout
from models.projectors.projector import Projector, TokenRule, by_grid


class ConvGLUProjector(Projector):
    """Convolutions of stride 2 with gates, a bottleneck adapter and a linear layer per branch, joined by another.

    WavLLM (https://arxiv.org/abs/2404.00656): two convolutions bring 50 features a second to 12.5 tokens. Read a
    :class:`encoders.speech.SpeechEncoder` with ``fusion: concat``, whose features are its branches side by side; what
    WavLLM cuts off where one branch is longer does not exist there.

    Args:
        input_size: Width of the encoder's features.
        output_size: Width of the language model.
        branch_sizes: Widths of the branches, which sum to ``input_size``; None takes the features as one branch.
        channels: Per branch the channels of its convolutions before their gates, which halve them. WavLLM has (1280,
            2048) on Whisper and (512, 2048) on WavLM.
        bottleneck: Width of the adapter, ``x + LN(up(GELU(down(x))))``.
        branch_output: Width of a branch when it is joined; None takes ``output_size / branches``.
        norm: A norm at the end, so that tokens enter at one scale; WavLLM has none.

    Raises:
        ValueError: If the branches do not sum to ``input_size``, or the channels do not fit the branches.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        branch_sizes: Sequence[int] | None = None,
        channels: Sequence[Sequence[int]] = ((1280, 2048),),
        bottleneck: int = 512,
        branch_output: int | None = None,
        norm: bool = True,
    ) -> None:
        super().__init__()
        branch_sizes = [input_size] if branch_sizes is None else list(branch_sizes)
        if sum(branch_sizes) != input_size:
            raise ValueError(f"branch_sizes: expected widths that sum to {input_size}, got {branch_sizes}")
        if len(channels) != len(branch_sizes) or len({len(widths) for widths in channels}) != 1:
            expected = f"as many convolutions for each of {len(branch_sizes)} branches"
            raise ValueError(f"channels: expected {expected}, got {[list(widths) for widths in channels]}")
        self.branch_sizes = branch_sizes
        self.token_rule = TokenRule(2 ** len(channels[0]))
        width = output_size // len(branch_sizes) if branch_output is None else branch_output
        self.branches = nn.ModuleList(
            _Branch(size, widths, bottleneck, width) for size, widths in zip(branch_sizes, channels, strict=True)
        )
        self.join = nn.Linear(width * len(branch_sizes), output_size)
        self.norm = nn.RMSNorm(output_size) if norm else nn.Identity()

    def forward(self, hidden_states: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        """Slow every branch of every clip down, and join them."""
        return self.norm(self.join(by_grid(hidden_states, layout, self._slowed))), self.projected(layout)

    def _slowed(self, clips: Tensor) -> Tensor:
        """(M, frames, Σ widths) -> (M, frames', branches · width)."""
        parts = clips.split(self.branch_sizes, dim=-1)
        return torch.cat([branch(part) for branch, part in zip(self.branches, parts, strict=True)], dim=-1)


class _Branch(nn.Module):
    """(M, frames, size) -> (M, frames', output)."""

    def __init__(self, size: int, channels: Sequence[int], bottleneck: int, output: int) -> None:
        super().__init__()
        sizes = [size, *(width // 2 for width in channels)]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, width, kernel_size=3, stride=2, padding=1)
            for before, width in zip(sizes[:-1], channels, strict=True)
        )
        last = sizes[-1]
        self.down, self.up = nn.Linear(last, bottleneck), nn.Linear(bottleneck, last)
        self.norm = nn.LayerNorm(last)
        self.linear = nn.Linear(last, output)

    def forward(self, clips: Tensor) -> Tensor:
        states = clips.transpose(1, 2)
        for convolution in self.convolutions:
            states = F.glu(convolution(states), dim=1)
        states = states.transpose(1, 2)
        states = states + self.norm(self.up(F.gelu(self.down(states))))
        projected: Tensor = self.linear(states)
        return projected
