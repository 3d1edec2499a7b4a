"""Projectors that keep the order of what they are given: every token stands for a neighbourhood of the item's grid."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from layers.layout import Layout
from models.projectors.projector import Projector, TokenRule, by_grid, mlp


class MLPProjector(Projector):
    """One token per feature through an MLP (LLaVA-1.5, https://arxiv.org/abs/2310.03744); one layer is linear.

    Args:
        input_size: Width of the encoder's features.
        output_size: Width of the language model.
        num_layers: Linear layers, with GELU between them.
        norms: A norm before and one after them; LLaVA has none.
    """

    def __init__(self, input_size: int, output_size: int, num_layers: int = 2, norms: bool = True) -> None:
        super().__init__()
        self.token_rule = TokenRule()
        self.layers = mlp(input_size, output_size, num_layers, norms)

    def forward(self, hidden_states: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        """Project every feature on its own."""
        return self.layers(hidden_states), layout


class PixelShuffleProjector(Projector):
    """A ``factor`` × ``factor`` neighbourhood of an image grid becomes one token, then an MLP.

    Space to depth as in Idefics3 (https://arxiv.org/abs/2408.12637); nothing is averaged away. Grids whose sides do not
    divide are padded with zeros below and to the right.

    Args:
        input_size: Width of the encoder's features.
        output_size: Width of the language model.
        factor: Side of the neighbourhood.
        num_layers: Linear layers of the MLP.
    """

    def __init__(self, input_size: int, output_size: int, factor: int = 2, num_layers: int = 2) -> None:
        super().__init__()
        self.token_rule = TokenRule(factor)
        self.layers = mlp(input_size * factor**2, output_size, num_layers)

    def forward(self, hidden_states: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        """Fold neighbourhoods into channels and project."""
        return self.layers(by_grid(hidden_states, layout, self._fold)), self.projected(layout)

    def _fold(self, maps: Tensor) -> Tensor:
        """(M, rows, columns, d) -> (M, rows' · columns', factor² · d)."""
        factor = self.token_rule.factor
        maps = F.pad(maps, (0, 0, 0, -maps.shape[2] % factor, 0, -maps.shape[1] % factor))
        maps = maps.unflatten(2, (-1, factor)).unflatten(1, (-1, factor))  # (M, r', f, c', f, d)
        return maps.transpose(2, 3).flatten(3).flatten(1, 2)


class PoolProjector(Projector):
    """The mean of a neighbourhood becomes one token, then an MLP; of frames as of image grids.

    What a neighbourhood lacks at the edge does not count.

    Args:
        input_size: Width of the encoder's features.
        output_size: Width of the language model.
        factor: Side of the neighbourhood.
        num_layers: Linear layers of the MLP.
    """

    def __init__(self, input_size: int, output_size: int, factor: int = 2, num_layers: int = 2) -> None:
        super().__init__()
        self.token_rule = TokenRule(factor)
        self.layers = mlp(input_size, output_size, num_layers)

    def forward(self, hidden_states: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        """Average and project."""
        factor = self.token_rule.factor
        pooled = by_grid(hidden_states, layout, lambda maps: average(maps, factor).flatten(1, -2))
        return self.layers(pooled), self.projected(layout)


class ConvProjector(Projector):
    """An MLP, the mean of a neighbourhood, and a depthwise convolution as position encoding, added to what goes in.

    The downsample projector of MobileVLM V2 (https://arxiv.org/abs/2402.03766); a norm before and after, as in
    the others.

    Args:
        input_size: Width of the encoder's features.
        output_size: Width of the language model.
        factor: Side of the neighbourhood.
        kernel_size: Of the depthwise convolution, odd.
        num_layers: Linear layers of the MLP.
    """

    def __init__(
        self, input_size: int, output_size: int, factor: int = 2, kernel_size: int = 3, num_layers: int = 2
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        self.token_rule = TokenRule(factor)
        self.layers = mlp(input_size, output_size, num_layers)
        self.positions = nn.Conv2d(output_size, output_size, kernel_size, padding=kernel_size // 2, groups=output_size)

    def forward(self, hidden_states: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        """Project, average, and add what the neighbours say."""
        return by_grid(self.layers(hidden_states), layout, self._pooled), self.projected(layout)

    def _pooled(self, maps: Tensor) -> Tensor:
        pooled = average(maps, self.token_rule.factor).movedim(-1, 1)  # (M, d, rows', columns')
        return (pooled + self.positions(pooled)).flatten(2).transpose(1, 2)


class FrameStackProjector(Projector):
    """``factor`` consecutive frames become one token, then an MLP (SLAM-LLM, https://arxiv.org/abs/2402.08846).

    The last token of a clip is padded with zeros; no frame is dropped.

    Args:
        input_size: Width of the encoder's features.
        output_size: Width of the language model.
        factor: Frames per token.
        num_layers: Linear layers of the MLP.
    """

    def __init__(self, input_size: int, output_size: int, factor: int = 4, num_layers: int = 2) -> None:
        super().__init__()
        self.token_rule = TokenRule(factor)
        self.layers = mlp(input_size * factor, output_size, num_layers)

    def forward(self, hidden_states: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        """Stack frames and project."""
        return self.layers(by_grid(hidden_states, layout, self._stack)), self.projected(layout)

    def _stack(self, clips: Tensor) -> Tensor:
        """(M, frames, d) -> (M, frames', factor · d)."""
        factor = self.token_rule.factor
        return F.pad(clips, (0, 0, 0, -clips.shape[1] % factor)).unflatten(1, (-1, factor)).flatten(2)


def average(maps: Tensor, factor: int) -> Tensor:
    """(M, *grid, d) -> (M, *grid', d): means of neighbourhoods, of those cells that exist."""
    moved = maps.movedim(-1, 1)
    pool = F.avg_pool2d if moved.ndim == 4 else F.avg_pool1d
    return pool(moved, factor, ceil_mode=True, count_include_pad=False).movedim(1, -1)
