"""Regions of an image beside the cells of its grid."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from layers.layout import ItemLayout, Layout
from models.projectors.projector import Projector, TokenRule, mlp


@dataclass(frozen=True)
class RegionRule(TokenRule):
    """What another rule makes of the grids, and one token per region.

    Args:
        cells: The rule of the grids.
    """

    cells: TokenRule = field(default_factory=TokenRule)

    def projected(self, item: ItemLayout) -> ItemLayout:
        """The item's layout after projection."""
        return replace(self.cells.projected(replace(item, regions=0)), regions=item.regions)


class RegionProjector(Projector):
    """Another projector for an image's grids, and a perceptron for its regions.

    Args:
        projector: The projector of the grids.
        input_size: Width of the encoder's features.
        output_size: Width of the language model.
        num_layers: Linear layers of the perceptron.
    """

    def __init__(self, projector: Projector, input_size: int, output_size: int, num_layers: int = 2) -> None:
        super().__init__()
        self.projector = projector
        self.token_rule = RegionRule(cells=projector.token_rule)
        self.regions = mlp(input_size, output_size, num_layers)

    def forward(self, hidden_states: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        """Project grids and regions, and put each item together again."""
        pieces = layout.split(hidden_states)
        cells = [piece[: len(piece) - item.regions] for piece, item in zip(pieces, layout.items, strict=True)]
        regions = [piece[len(piece) - item.regions :] for piece, item in zip(pieces, layout.items, strict=True)]
        grids = Layout([replace(item, regions=0) for item in layout.items])
        tokens, projected = self.projector(torch.cat(cells), grids)
        beside = self.regions(torch.cat(regions)).split([item.regions for item in layout.items])
        own = projected.split(tokens)
        joined = [part for pair in zip(own, beside, strict=True) for part in pair]
        return torch.cat(joined), self.projected(layout)
