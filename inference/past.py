"""What a language model has read already: keys and values of positions, kept to be read on from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

Symbols = tuple[Hashable, ...]
"""What stands at each position of a row: a token id, or which part of which medium. Equal symbols, equal embeddings."""


@dataclass(frozen=True)
class Past:
    """Keys and values of one row's first L positions, without padding.

    Args:
        keys: Per layer (heads, L, d).
        values: Per layer (heads, L, d).
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @classmethod
    def of(cls, cache: Cache, place: int, columns: Tensor) -> Past:
        """Copy a row of a cache.

        Args:
            cache: Every layer attends to all positions.
            place: Which row.
            columns: (S,) True where the row is not padding.
        """
        layers: list[Any] = cache.layers
        assert all(type(layer) is DynamicLayer for layer in layers), "a layer forgets positions"
        return cls(
            tuple(layer.keys[place][:, columns] for layer in layers),
            tuple(layer.values[place][:, columns] for layer in layers),
        )

    @property
    def length(self) -> int:
        """L."""
        return self.keys[0].shape[1]

    def first(self, length: int) -> Past:
        """The first positions alone."""
        return Past(tuple(item[:, :length] for item in self.keys), tuple(item[:, :length] for item in self.values))


def join_pasts(pasts: Sequence[Past | None]) -> tuple[Cache, Tensor]:
    """One cache of several rows, each padded at the left.

    Args:
        pasts: At least one that is not None; None has read nothing.

    Returns:
        The cache, and a mask (B, S) of ones at real positions.
    """
    some = next(past for past in pasts if past is not None)
    lengths = [0 if past is None else past.length for past in pasts]
    width, cache = max(lengths), DynamicCache()
    for index in range(len(some.keys)):
        sides = []
        for of_some, side in ((some.keys[index], "keys"), (some.values[index], "values")):
            rows = [of_some[:, :0] if past is None else getattr(past, side)[index] for past in pasts]
            sides.append(torch.stack([F.pad(row, (0, 0, width - row.shape[1], 0)) for row in rows]))
        cache.update(sides[0], sides[1], index)
    columns = torch.arange(width, device=some.keys[0].device)
    padding = torch.tensor([width - length for length in lengths], device=columns.device)
    return cache, (columns >= padding[:, None]).long()


class PastStore:
    """Pasts of conversations, so that a next turn reads only what is new; the least recently used ones go first.

    Args:
        max_positions: Positions kept in all.
    """

    def __init__(self, max_positions: int) -> None:
        self.max_positions = max_positions
        self._entries: OrderedDict[Symbols, Past] = OrderedDict()

    @property
    def num_positions(self) -> int:
        """Positions kept now."""
        return sum(len(symbols) for symbols in self._entries)

    def find(self, symbols: Symbols) -> Past | None:
        """What is known of the longest beginning of a row, its last position left out: there is always one to read."""
        lengths = {known: min(common_length(known, symbols), len(symbols) - 1) for known in self._entries}
        best = max(lengths, key=lengths.__getitem__, default=None)
        if best is None or lengths[best] == 0:
            return None
        self._entries.move_to_end(best)
        return self._entries[best].first(lengths[best])

    def add(self, symbols: Symbols, past: Past) -> None:
        """Keep a row's past, instead of those that it continues."""
        if len(symbols) > self.max_positions:
            return
        for known in [known for known in self._entries if common_length(known, symbols) == len(known)]:
            del self._entries[known]
        self._entries[symbols] = past
        while self.num_positions > self.max_positions:
            self._entries.popitem(last=False)


def common_length(first: Symbols, second: Symbols) -> int:
    """How many positions two rows begin with in common."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle - 1)
    return low


def shared_prefixes(rows: Sequence[Symbols], groups: Sequence[Hashable], shortest: int) -> list[tuple[list[int], int]]:
    """Which rows of a batch begin alike.

    Args:
        rows: Their symbols.
        groups: Rows of equal keys are compared.
        shortest: Beginnings below this length are not worth a forward of their own.

    Returns:
        (indices of at least two rows, length that they have in common, below that of each).
    """
    members: dict[Hashable, list[int]] = {}
    for index, key in enumerate(groups):
        members.setdefault(key, []).append(index)
    shared = []
    for indices in members.values():
        lengths = [common_length(rows[a], rows[b]) for a, b in pairwise(indices)]
        length = min([*lengths, *(len(rows[index]) - 1 for index in indices)])
        if len(indices) > 1 and length >= shortest:
            shared.append((indices, length))
    return shared
