"""What a ragged sequence of encoder features means, item by item."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from layers.geometry import GeometricTransform


@dataclass(frozen=True)
class ItemLayout:
    """The shape of one item's features.

    Args:
        grid: Features per axis: (rows, columns) for an image, (frames,) for audio, (nodes,) for a graph.
        tiles: (rows, columns) of tiles of an image, each with a grid of its own behind that of the whole image; (0, 0)
            where there is the whole image alone.
        original_size: (width, height) in pixels, (samples,) or (nodes,).
        transform: How an image's original pixels map to the encoder's input, of the whole image where there are tiles;
            None for other modalities.
        regions: Features of an image that stand for no cell of a grid, behind all grids.
        seconds: Duration of audio, or when a video shows this frame; None for other media.
    """

    grid: tuple[int, ...]
    original_size: tuple[int, ...]
    transform: GeometricTransform | None = None
    seconds: float | None = None
    tiles: tuple[int, int] = (0, 0)
    regions: int = 0

    @property
    def num_views(self) -> int:
        """Grids of this item: the whole, and its tiles."""
        return 1 + self.tiles[0] * self.tiles[1]

    @property
    def num_features(self) -> int:
        """The number of feature vectors of this item."""
        return math.prod(self.grid) * self.num_views + self.regions

    @property
    def whole(self) -> ItemLayout:
        """The item without its tiles and regions; its features come first."""
        return replace(self, tiles=(0, 0), regions=0)

    def with_grid(self, *grid: int) -> ItemLayout:
        """The same item after a projector changed its grids."""
        return replace(self, grid=grid)


@dataclass(frozen=True)
class Layout:
    """The items of a ragged batch, in order; their features are concatenated along the first axis."""

    items: tuple[ItemLayout, ...]
    lengths: tuple[int, ...] = field(init=False)

    def __init__(self, items: Sequence[ItemLayout]) -> None:
        object.__setattr__(self, "items", tuple(items))
        object.__setattr__(self, "lengths", tuple(item.num_features for item in items))

    def __len__(self) -> int:
        return len(self.items)

    @property
    def total(self) -> int:
        """The number of features of all items together."""
        return sum(self.lengths)

    def split(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        """Cut ragged features (ΣN, d) into one (N, d) view per item.

        Raises:
            ValueError: If the features are not as many as the layout says.
        """
        if hidden_states.shape[0] != self.total:
            raise ValueError(f"the layout describes {self.total} features, got {hidden_states.shape[0]}")
        return torch.split(hidden_states, list(self.lengths))
