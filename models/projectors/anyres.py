"""The projector of images in tiles: the whole image, then its tiles as one large grid without their padding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.layout import ItemLayout, Layout
from models.projectors.projector import Projector, TokenRule, mlp


@dataclass(frozen=True)
class AnyresRule(TokenRule):
    """The whole image's grid, then the joined grid of its tiles with a token at the end of every row.

    Args:
        max_tiles: A joined grid that is clearly larger than so many tiles is brought down to them; None leaves it.
        single_newline: Whether an image without tiles is closed by the row's token too.
    """

    max_tiles: int | None = None
    single_newline: bool = False

    def projected(self, item: ItemLayout) -> ItemLayout:
        """The item's layout after projection: one axis."""
        count = math.prod(item.grid)
        if item.num_views == 1:
            return item.with_grid(count + self.single_newline)
        rows, columns = self.joined(item)
        return item.whole.with_grid(count + rows * (columns + 1))

    def unpadded(self, item: ItemLayout) -> tuple[slice, slice]:
        """Rows and columns of the tiles' joined grid in which the image lies.

        As LLaVA-NeXT counts them: whole cells on both sides of the shorter axis.
        """
        height, width = (count * size for count, size in zip(item.tiles, item.grid, strict=True))
        image_width, image_height = item.original_size
        if image_width / image_height > width / height:
            used = int(round(image_height * (width / image_width), 7))
            padding = (height - used) // 2
            return slice(padding, height - padding), slice(0, width)
        used = int(round(image_width * (height / image_height), 7))
        padding = (width - used) // 2
        return slice(0, height), slice(padding, width - padding)

    def joined(self, item: ItemLayout) -> tuple[int, int]:
        """(rows, columns) of the tiles' grid without padding, reduced where it is too large."""
        across, along = self.unpadded(item)
        rows, columns = across.stop - across.start, along.stop - along.start
        if self.max_tiles is not None:
            ratio = math.sqrt(rows * columns / (self.max_tiles * item.grid[0] ** 2))
            if ratio > 1.1:
                return int(rows // ratio), int(columns // ratio)
        return rows, columns


class AnyresProjector(Projector):
    """An MLP on every feature, then the tiles put together, as in transformers' ``LlavaNext`` and ``LlavaOnevision``.

    The tokens of an image are those of the whole image, then, row by row, those of its tiles' joined grid without the
    cells that show padding, every row closed by a learned token. With ``max_tiles`` a larger grid is reduced bilinearly
    (https://arxiv.org/abs/2408.03326).

    Args:
        input_size: Width of the encoder's features.
        output_size: Width of the language model.
        num_layers: Linear layers of the MLP.
        norms: A norm before and one after them; LLaVA has none.
        max_tiles: Tiles to whose size a larger grid is reduced.
        single_newline: Whether an image without tiles is closed by the row's token too, as in LLaVA.
    """

    token_rule: AnyresRule

    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_layers: int = 2,
        norms: bool = True,
        max_tiles: int | None = None,
        single_newline: bool = True,
    ) -> None:
        super().__init__()
        self.token_rule = AnyresRule(max_tiles=max_tiles, single_newline=single_newline)
        self.layers = mlp(input_size, output_size, num_layers, norms)
        self.newline = nn.Parameter(torch.randn(output_size) / output_size**0.5)

    def forward(self, hidden_states: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        """Project every feature, then put the tiles of every image together."""
        tokens = layout.split(self.layers(hidden_states))
        pieces = [self._assemble(own, item) for own, item in zip(tokens, layout.items, strict=True)]
        return torch.cat(pieces), self.projected(layout)

    def _assemble(self, tokens: Tensor, item: ItemLayout) -> Tensor:
        newline = self.newline.to(tokens)
        if item.num_views == 1:
            return torch.cat([tokens, newline[None]]) if self.token_rule.single_newline else tokens
        whole, tiles = tokens[: item.whole.num_features], tokens[item.whole.num_features :]
        grid = tiles.unflatten(0, (*item.tiles, *item.grid)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        grid = grid[self.token_rule.unpadded(item)]
        size = self.token_rule.joined(item)
        if tuple(grid.shape[:2]) != size:
            grid = F.interpolate(grid.permute(2, 0, 1)[None], size, mode="bilinear")[0].permute(1, 2, 0)
        rows = torch.cat([grid, newline.expand(size[0], 1, -1)], dim=1)
        return torch.cat([whole, rows.flatten(0, 1)])
