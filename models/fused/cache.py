"""Keys and values in place: memory for what is to come, rows padded at the left, and attention over what is there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

KeysValues = tuple[Sequence[Tensor], Sequence[Tensor]]
"""Per layer (heads, L, d) keys and values of one row."""
_ROOM = 64


class StaticCache:
    """What a batch of rows has read, layer by layer; all rows end at one column, and shorter ones begin later.

    Args:
        num_layers: Of the model.
        size: Rows, heads of keys, columns that are filled, and the size of a head.
        room: Columns to come; memory for them is taken as they come.
        dtype: Of the model.
        device: Of the model.

    Attributes:
        keys: Per layer (B, heads, columns, d).
        values: Per layer (B, heads, columns, d).
    """

    def __init__(
        self, num_layers: int, size: tuple[int, int, int, int], room: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        rows, heads, width, head_size = size
        self._most = width + room
        shape = (rows, heads, width + min(room, max(_ROOM, width // 2)), head_size)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]

    @property
    def columns(self) -> int:
        """Columns that there is memory for."""
        return self.keys[0].shape[2]

    def begin(self, padding: Sequence[int], pasts: Sequence[KeysValues | None]) -> None:
        """Clear the padding, whose columns are masked but must be numbers, and copy what was read before.

        Args:
            padding: Per row, its columns of padding.
            pasts: Per row, what follows them.
        """
        widest = max(padding)
        for number, sides in enumerate(zip(self.keys, self.values, strict=True)):
            for side, own in enumerate(sides):
                own[:, :, :widest].zero_()
                for row, past in enumerate(pasts):
                    if past is not None:
                        known = past[side][number]
                        own[row, :, padding[row] : padding[row] + known.shape[1]] = known

    def write(self, number: int, rows: slice, columns: slice, keys: Tensor, values: Tensor) -> None:
        """Keep a layer's (n, heads, L, d) keys and values."""
        self.keys[number][rows, :, columns].copy_(keys)
        self.values[number][rows, :, columns].copy_(values)

    def reserve(self, columns: int) -> None:
        """Have memory for so many columns."""
        if columns <= self.columns:
            return
        wanted = max(columns, min(self._most, columns + max(_ROOM, columns // 2)))
        for side in (self.keys, self.values):
            for number, own in enumerate(side):
                grown = own.new_empty(*own.shape[:2], wanted, own.shape[3])
                grown[:, :, : own.shape[2]] = own
                side[number] = grown

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these rows in this order; where all but moved ones stay in place, only those are copied."""
        moved = [(new, old) for new, old in enumerate(places) if new != old]
        in_place = len(places) <= len(self.keys[0]) and all(old >= len(places) for _, old in moved)
        index = torch.tensor(places, device=self.keys[0].device)
        for side in (self.keys, self.values):
            for number, own in enumerate(side):
                if not in_place:
                    side[number] = own.index_select(0, index)
                    continue
                for new, old in moved:
                    own[new] = own[old]
                side[number] = own[: len(places)]

    def row(self, place: int, columns: slice) -> KeysValues:
        """Copies of one row's columns."""
        copied = [[own[place, :, columns].clone() for own in side] for side in self.sides]
        return copied[0], copied[1]

    @property
    def sides(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values."""
        return self.keys, self.values


def attend_last(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of one new position per row; heads that share keys are as many positions of one head.

    Args:
        query: (B, heads, d).
        keys: (B, key-value heads, S, d).
        values: (B, key-value heads, S, d).
        mask: (B, 1, 1, S) added to the scores; None where all is seen.
        scale: Of the scores.

    Returns:
        (B, heads · d).
    """
    rows, heads, size = query.shape
    grouped = query.reshape(rows, keys.shape[1], -1, size)
    return F.scaled_dot_product_attention(grouped, keys, values, mask, scale=scale).reshape(rows, heads * size)


def attend_run(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of the L last positions of rows that are equally long.

    Args:
        query: (n, heads, L, d).
        keys: (n, key-value heads, S, d).
        values: (n, key-value heads, S, d).
        mask: (L, S) added to the scores; None where S = L and a position sees all before it.
        scale: Of the scores.

    Returns:
        (n · L, heads · d).
    """
    groups = query.shape[1] // keys.shape[1]
    native = query.is_cuda and mask is None  # elsewhere grouped heads have no fast kernel
    if groups > 1 and not native:
        keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    attended = F.scaled_dot_product_attention(
        query, keys, values, mask, is_causal=mask is None, scale=scale, enable_gqa=groups > 1 and native
    )
    return attended.transpose(1, 2).flatten(2).flatten(0, 1)


def added_mask(length: int, known: int, window: int | None, like: Tensor) -> Tensor | None:
    """(length, known + length) of 0 where a position sees another and -inf where it does not; None where it is causal.

    Args:
        length: Positions that read.
        known: Positions before them.
        window: A position sees itself and the ``window - 1`` before it; None sees all.
        like: Of the type and device wanted.
    """
    if known == 0 and (window is None or window >= length):
        return None
    mask = like.new_full((length, known + length), float("-inf")).triu(known + 1)
    return mask if window is None else mask + torch.full_like(mask, float("-inf")).tril(known - window)
