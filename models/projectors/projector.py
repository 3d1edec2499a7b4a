"""What a projector is, and the rules that say how many tokens an item becomes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layers.layout import ItemLayout, Layout


@dataclass(frozen=True)
class TokenRule:
    """How a projector changes an item's grid: each axis is divided by ``factor``, rounded up.

    Weightless and picklable, so that data workers know every length before anything is decoded.
    """

    factor: int = 1

    def projected(self, item: ItemLayout) -> ItemLayout:
        """The item's layout after projection."""
        return item.with_grid(*(-(-size // self.factor) for size in item.grid))

    def num_tokens(self, item: ItemLayout) -> int:
        """Language-model positions of the item."""
        return self.projected(item).num_features


@dataclass(frozen=True)
class QueryRule(TokenRule):
    """A fixed number of queries per item, or per window of so many features.

    Args:
        num_queries: Queries.
        window: Features per window; None takes the item as a whole.
    """

    num_queries: int = 1
    window: int | None = None

    def projected(self, item: ItemLayout) -> ItemLayout:
        """The item's layout after projection: one axis."""
        windows = 1 if self.window is None else -(-item.num_features // self.window)
        return item.whole.with_grid(windows * self.num_queries)


class Projector(nn.Module, ABC):
    """Ragged features (ΣN, d) to ragged tokens (ΣN', d_llm).

    Attributes:
        token_rule: Says N' per item.
    """

    token_rule: TokenRule

    @abstractmethod
    def forward(self, hidden_states: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        """Project a ragged batch; the returned layout follows the token rule."""

    def projected(self, layout: Layout) -> Layout:
        """The layout after projection."""
        return Layout([self.token_rule.projected(item) for item in layout.items])


def mlp(input_size: int, output_size: int, num_layers: int, norms: bool = True) -> nn.Sequential:
    """Linear layers with GELU between two norms, or without these, as in LLaVA.

    Without the norms the projected tokens grow while what is easy is learned first: they reached a root mean square
    of 7.5 beside text embeddings of .03, and what lies in directions of less variance (colours, say) was lost.
    """
    if num_layers < 1:
        raise ValueError(f"num_layers: expected at least 1, got {num_layers}")
    modules: list[nn.Module] = [nn.Linear(input_size, output_size)]
    for _ in range(num_layers - 1):
        modules += [nn.GELU(), nn.Linear(output_size, output_size)]
    return (
        nn.Sequential(nn.LayerNorm(input_size), *modules, nn.RMSNorm(output_size)) if norms else nn.Sequential(*modules)
    )


def by_grid(hidden_states: Tensor, layout: Layout, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function to grids, those of one shape together; every tile of an image is a grid of its own.

    Args:
        hidden_states: (ΣN, d).
        layout: Its items.
        change: (M, *grid, d) -> (M, N', d').

    Returns:
        (ΣN', d') in the order of the items.

    Raises:
        ValueError: If an item has features that stand for no cell.
    """
    if any(item.regions for item in layout.items):
        raise ValueError("expected the cells of a grid alone, got regions beside them; put a RegionProjector around")
    grids = [item.grid for item in layout.items for _ in range(item.num_views)]
    if len(set(grids)) == 1:
        return change(hidden_states.unflatten(0, (len(grids), *grids[0]))).flatten(0, 1)
    pieces, done = torch.split(hidden_states, [math.prod(grid) for grid in grids]), dict[int, Tensor]()
    for grid in dict.fromkeys(grids):
        places = [place for place, other in enumerate(grids) if other == grid]
        stacked = torch.stack([pieces[place].unflatten(0, grid) for place in places])
        done.update(zip(places, change(stacked), strict=True))
    return torch.cat([done[place] for place in range(len(grids))])
