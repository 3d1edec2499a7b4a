"""What conditions a language model's parts, beside the embeddings that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.adapters.prompt_gate import Gates


@dataclass(frozen=True)
class Conditions:
    """Of some samples, each a row; what a model does not need is None.

    Args:
        gates: Of their instructions.
        situations: Per row (L,) the situations of the tokens that come next.
        situation_of: (V,) the situation of every token id.
    """

    gates: Gates | None = None
    situations: Sequence[Tensor] | None = None
    situation_of: Tensor | None = None

    def rows(self, index: Tensor) -> Conditions:
        """Those of some of the rows."""
        situations = None if self.situations is None else [self.situations[row] for row in index.tolist()]
        return replace(self, gates=None if self.gates is None else self.gates.rows(index), situations=situations)

    def within(self, spans: Sequence[slice]) -> Conditions:
        """Those of a stretch of every row."""
        if self.situations is None:
            return self
        return replace(self, situations=[row[span] for row, span in zip(self.situations, spans, strict=True)])

    def following(self, token_ids: Tensor) -> Conditions:
        """For the forward of one more token per row, (B,) ids."""
        if self.situation_of is None:
            return self
        return replace(self, situations=list(self.situation_of[token_ids][:, None]))

    def packed_situations(self) -> Tensor | None:
        """(1, T), row after row."""
        return None if self.situations is None else torch.cat(list(self.situations))[None]

    def padded_situations(self) -> Tensor | None:
        """(B, S), padded at the left, where nothing is read, with the row's first."""
        if self.situations is None:
            return None
        width = max(len(row) for row in self.situations)
        return torch.stack([torch.cat([row[:1].expand(width - len(row)), row]) for row in self.situations])
