"""Scores of triples (head, relation, tail) of a knowledge graph, as comparisons of a query with every entity."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

RelationModel = Literal["transe", "distmult", "complex", "simple"]
RELATION_MODELS: tuple[str, ...] = ("transe", "distmult", "complex", "simple")


class Relations(nn.Module):
    """A vector per relation, and how it joins two entities.

    - ``transe``: ``-‖h + r - t‖₁`` (https://papers.nips.cc/paper/5071), entities of unit length;
    - ``distmult``: ``Σ h r t`` (https://arxiv.org/abs/1412.6575);
    - ``complex``: ``Re Σ h r conj(t)``, the first half of a vector being its real part
      (https://arxiv.org/abs/1606.06357);
    - ``simple``: ``½ (Σ h₁ r₁ t₂ + Σ t₁ r₂ h₂)`` over halves of the vectors (https://arxiv.org/abs/1802.04868).

    Either side of a triple that is asked for is one query vector, which is compared with every entity by a dot product,
    or by its L1 distance for ``transe``.

    Args:
        num_relations: How many.
        size: Width of the vectors, even for ``complex`` and ``simple``.
        model: Which.
    """

    def __init__(self, num_relations: int, size: int, model: RelationModel = "transe") -> None:
        super().__init__()
        if model not in RELATION_MODELS:
            raise ValueError(f"model: expected one of {', '.join(RELATION_MODELS)}, got '{model}'")
        if num_relations < 1 or (size % 2 and model in ("complex", "simple")):
            raise ValueError(f"{model}: expected relations and an even width, got {num_relations} of width {size}")
        self.model = model
        self.table = nn.Embedding(num_relations, size)
        nn.init.xavier_uniform_(self.table.weight)

    def tail_queries(self, heads: Tensor, relations: Tensor) -> Tensor:
        """Queries (n, size) for the tails of heads (n, size) by vectors of relations (n, size)."""
        relations = relations.to(heads.dtype)
        if self.model == "transe":
            return heads + relations
        if self.model == "distmult":
            return heads * relations
        (a, b), (c, d) = heads.chunk(2, dim=-1), relations.chunk(2, dim=-1)
        if self.model == "complex":
            return torch.cat([a * c - b * d, a * d + b * c], dim=-1)  # h r, against the conjugate of the tail
        return torch.cat([d * b, a * c], dim=-1) / 2

    def head_queries(self, tails: Tensor, relations: Tensor) -> Tensor:
        """Queries (n, size) for the heads of tails (n, size) by vectors of relations (n, size)."""
        relations = relations.to(tails.dtype)
        if self.model == "transe":
            return tails - relations
        if self.model == "distmult":
            return tails * relations
        (a, b), (c, d) = tails.chunk(2, dim=-1), relations.chunk(2, dim=-1)
        if self.model == "complex":
            return torch.cat([a * c + b * d, b * c - a * d], dim=-1)  # conj(r) t, against the conjugate of the head
        return torch.cat([c * b, a * d], dim=-1) / 2

    def compare(self, queries: Tensor, entities: Tensor) -> Tensor:
        """(n, m) scores of queries (n, size) and entities (m, size)."""
        return -torch.cdist(queries, entities, p=1) if self.model == "transe" else queries @ entities.T
