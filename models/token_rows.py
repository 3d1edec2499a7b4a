"""Rows of new tokens beside a pretrained vocabulary: they are trained, the table is not touched."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenRows(nn.Module):
    """Input and output embeddings of the tokens from ``first`` on.

    They begin at the mean of the table's rows with a little noise, so that they neither stand out nor are alike. A
    table of 150,000 rows then stays frozen, undecayed and without optimizer state, and a checkpoint holds the new rows
    alone.

    Args:
        first: Id of the first new token; rows that the table may have from there on (padding) are not used.
        count: New tokens.
        table: (V, d) the pretrained input rows.
        output: (V, d) the output rows, or None where they are the input rows.

    Raises:
        ValueError: If there is no new token, or a gap before the first.
    """

    embedding: nn.Parameter
    output_embedding: nn.Parameter | None

    def __init__(self, first: int, count: int, table: Tensor, output: Tensor | None) -> None:
        super().__init__()
        if count < 1 or not 0 < first <= len(table):
            raise ValueError(
                f"new_tokens: expected first from 1 to {len(table)} and count >= 1, got {first} and {count}"
            )
        self.first, self.count = first, count
        self.embedding = nn.Parameter(_rows_like(table[:first], count))
        self.output_embedding = None if output is None else nn.Parameter(_rows_like(output[:first], count))

    @property
    def output_rows(self) -> Tensor:
        """(count, d) of the output layer."""
        return self.embedding if self.output_embedding is None else self.output_embedding

    def embed(self, ids: Tensor, embedding: nn.Module, scale: float) -> Tensor:
        """(..., d): the table's rows for its tokens, ours times ``scale`` for the others."""
        old = embedding(ids.clamp(max=self.first - 1))
        new = F.embedding((ids - self.first).clamp(min=0), self.embedding) * scale
        return torch.where((ids >= self.first)[..., None], new.to(old.dtype), old)

    def logits(self, hidden_states: Tensor, head: nn.Module) -> Tensor:
        """(..., first + count): the head's for its tokens, then ours."""
        new = F.linear(hidden_states, self.output_rows.to(hidden_states.dtype))
        return torch.cat([head(hidden_states)[..., : self.first], new], dim=-1)


def _rows_like(table: Tensor, count: int) -> Tensor:
    with torch.no_grad():
        mean = table.float().mean(dim=0)
        spread = (table.float() - mean).square().mean().sqrt()
        return (mean + 0.1 * spread * torch.randn(count, table.shape[1], device=table.device)).to(table.dtype)
