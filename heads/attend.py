"""Blocks that several heads share: ragged padding, 2-D positions, and a reader that queries features with states."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


def group_indices(keys: Sequence[Hashable]) -> list[list[int]]:
    """Group positions by equal key, in order of first appearance, so that equal shapes can be stacked."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    return list(groups.values())


def pad_ragged(items: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Stack (N_i, d) tensors.

    Returns:
        (n, max N, d), and a boolean mask (n, max N) that is True at real rows, or None when no row is padding.
    """
    lengths = [item.shape[0] for item in items]
    if len(set(lengths)) == 1:
        return torch.stack(list(items)), None
    padded = pad_sequence(list(items), batch_first=True)
    steps = torch.arange(padded.shape[1], device=padded.device)
    return padded, steps[None] < torch.tensor(lengths, device=padded.device)[:, None]


def full_precision(values: Tensor) -> Tensor:
    """In float32, unless they are more precise already."""
    return values if values.dtype == torch.float64 else values.float()


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (n, N, d) over real rows."""
    if mask is None:
        return values.mean(dim=1)
    weights = mask.to(values.dtype)[..., None]
    return (values * weights).sum(dim=1) / weights.sum(dim=1)


def required_states(states: Tensor | None, head: str) -> Tensor:
    """The hidden states that a head cannot do without.

    Raises:
        ValueError: If there are none (the link types ``text`` and ``boxes`` pass none).
    """
    if states is None:
        raise ValueError(f"{head} reads hidden states: give its task link 'hidden' or 'queries', not 'text' or 'boxes'")
    return states


def grid_centres(rows: int, columns: int, like: Tensor) -> Tensor:
    """(rows * columns, 2) x and y of the cells' centres, as fractions of the input frame, row by row."""
    x = (torch.arange(columns, device=like.device, dtype=torch.float32) + 0.5) / columns
    y = (torch.arange(rows, device=like.device, dtype=torch.float32) + 0.5) / rows
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x, grid_y], dim=-1).reshape(-1, 2)


def sincos_positions(centres: Tensor, width: int) -> Tensor:
    """2-D sine-cosine encoding of fractional coordinates (N, 2) in ``width`` channels (a multiple of 4).

    Frequencies run from half a wave to 32 waves per frame, so that encodings of different grids are comparable.
    """
    frequencies = math.pi * torch.logspace(0, 6, width // 4, base=2.0, device=centres.device)
    angles = centres[:, :, None] * frequencies  # (N, 2, width / 4)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)


def perceptron(input_size: int, hidden_size: int, output_size: int) -> nn.Sequential:
    """A two-layer perceptron with GELU."""
    return nn.Sequential(nn.Linear(input_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, output_size))


class CrossAttention(nn.Module):
    """A pre-normalised cross-attention layer followed by a perceptron, both residual.

    Args:
        width: Width of queries and keys.
        num_heads: Attention heads.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.LayerNorm(width), perceptron(width, 2 * width, width))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Let (n, K, width) queries look at (n, N, width) keys and values; ``mask`` (n, N) is True at real keys."""

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        attended = F.scaled_dot_product_attention(
            split(self.query(self.norm(queries))),
            split(self.key(keys)),
            split(self.value(values)),
            attn_mask=None if mask is None else mask[:, None, None],
        )
        queries = queries + self.output(attended.transpose(1, 2).flatten(2))
        return queries + self.feed_forward(queries)


@dataclass
class Reading:
    """What a :class:`StateReader` found.

    Args:
        query: (n, width) the states after looking at the features.
        values: (n, N, width) projected features.
        keys: (n, N, width) the same with positions.
        mask: (n, N) True at real features, None when all are real.
    """

    query: Tensor
    values: Tensor
    keys: Tensor
    mask: Tensor | None


class StateReader(nn.Module):
    """Hidden states as queries over ragged features: a few cross-attention layers.

    Args:
        state_size: Width of the language model's states.
        feature_size: Width of the encoder's features.
        width: Inner width, a multiple of 4 and of ``num_heads``.
        num_layers: Cross-attention layers.
        num_heads: Attention heads.
    """

    def __init__(self, state_size: int, feature_size: int, width: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        if width % 4 or width % num_heads:
            raise ValueError(f"width must be a multiple of 4 and of num_heads={num_heads}, got {width}")
        self.width = width
        self.state_projection = nn.Sequential(nn.LayerNorm(state_size), perceptron(state_size, width, width))
        self.feature_projection = nn.Sequential(nn.LayerNorm(feature_size), nn.Linear(feature_size, width))
        self.layers = nn.ModuleList(CrossAttention(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        states: Tensor,
        lengths: Sequence[int],
        features: Sequence[Tensor],
        grids: Sequence[tuple[int, ...]] | None = None,
    ) -> Reading:
        """Read one ragged item per call.

        Args:
            states: (ΣK, state_size).
            lengths: K per call.
            features: (N_i, feature_size) per call.
            grids: (rows, columns) per call, for positions; None for features without a grid.
        """
        queries, state_mask = pad_ragged(torch.split(self.state_projection(states), list(lengths)))
        padded, mask = pad_ragged(features)
        values = self.feature_projection(padded)
        keys = values
        if grids is not None:
            places = [sincos_positions(grid_centres(rows, columns, values), self.width) for rows, columns in grids]
            keys = values + pad_ragged(places)[0].to(values.dtype)
        for layer in self.layers:
            queries = layer(queries, keys, keys, mask)
        query = masked_mean(self.norm(queries), state_mask)
        return Reading(query, values, keys, mask)


class Relevance(nn.Module):
    """How relevant each feature is to what a :class:`StateReader` read: a scaled dot product.

    Args:
        width: The reader's width.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)

    def forward(self, reading: Reading) -> Tensor:
        """Compute (n, N) logits, -inf at padding."""
        keys = self.key(reading.keys)
        logits = torch.einsum("nd,nkd->nk", self.query(reading.query), keys) / math.sqrt(keys.shape[-1])
        return logits if reading.mask is None else logits.masked_fill(~reading.mask, float("-inf"))
