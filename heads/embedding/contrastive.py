"""Vectors of calls, trained so that a query lies nearest to its own passage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from heads.embedding.contrast import Temperature, contrast, shared_sum
from heads.embedding.pooling import PoolingKind
from heads.embedding.targets import POSITIVE, QUERY, UNNAMED, PairTargetProcessor, pair_numbers
from heads.embedding.vectors import VectorHead
from heads.gather import Gathered, gather
from layers.head import HeadTarget, LossTerm


class EmbeddingHead(VectorHead):
    """Embeds what a conversation says, for dense retrieval (https://arxiv.org/abs/2408.12194).

    Trained by InfoNCE, ``-log(exp(q·p⁺/τ) / Σ_p exp(q·p/τ))``, p running over the positives and hard negatives of all
    queries of the pack and of the packs that other processes compute at the same time. A query and its passages are
    conversations of one record, each with a call of this head's task.

    Args:
        state_size: Width of the language model's states.
        embedding_size: Width of the vectors.
        pooling: How the states of a call become one, see :class:`heads.embedding.pooling.Pooling`.
        domains: Tasks that have an expert each, see :class:`heads.embedding.experts.DomainExperts`; none without.
        hidden_size: Width between two layers of the projection; 0 for a single one without bias.
        temperature: τ.
        learn_temperature: Whether τ is learned, from there on.
        symmetric: Half of the loss is that of each positive among the queries.
        num_queries: Learned queries, for tasks of the link ``queries``.
        top_k: Items of an answer.
    """

    gathers: ClassVar[bool] = True

    def __init__(
        self,
        state_size: int,
        embedding_size: int,
        pooling: PoolingKind = "last",
        domains: Sequence[str] = (),
        hidden_size: int = 0,
        temperature: float = 0.05,
        learn_temperature: bool = False,
        symmetric: bool = False,
        num_queries: int = 0,
        top_k: int = 10,
    ) -> None:
        super().__init__(
            state_size,
            embedding_size,
            pooling,
            domains,
            hidden_size,
            normalize=True,
            num_queries=num_queries,
            top_k=top_k,
        )
        self.temperature = Temperature(temperature, learn_temperature)
        self.symmetric = symmetric
        self.target_processor = PairTargetProcessor()

    def loss(self, predictions: Tensor, targets: Sequence[HeadTarget]) -> LossTerm:
        """Summed InfoNCE of this process's queries; ``top1`` counts those whose nearest passage is their own.

        Raises:
            ValueError: If a query has no positive.
        """
        numbers = pair_numbers(targets, predictions.device)
        everyone = gather(predictions, numbers, across=self.training)
        roles = everyone.numbers[:, 1]
        queries, passages = _part(everyone, roles == QUERY), _part(everyone, roles != QUERY)
        total = self.zero_touch().to(predictions.device) + predictions.sum() * 0
        count = int(queries.own.sum())
        if not len(queries.rows):
            return LossTerm(total, 0)
        found = self._sum(queries, passages)
        if self.symmetric:
            found = (found + self._sum(_part(passages, passages.numbers[:, 1] == POSITIVE), queries)) / 2
        return LossTerm(total + found, count, {"top1": _top1(queries, passages)})

    def _sum(self, anchors: Gathered, others: Gathered) -> Tensor:
        """The loss of each anchor's own among the others, summed over the anchors of this process."""

        def losses(rows: Tensor, mine: bool) -> Tensor:
            numbers, scale = anchors.numbers[rows], self.temperature.scale(others.rows)
            positives = _belong(numbers, others.numbers)
            if not bool(positives.any(dim=1).all()):
                raise ValueError("pair: expected a positive for every query of a pack, got a query without")
            logits = anchors.rows[rows] @ others.rows.T * (scale if mine else scale.detach())
            return contrast(logits, positives, _same_item(numbers, others.numbers) & ~positives)

        return shared_sum(losses, anchors.own)


def _part(gathered: Gathered, chosen: Tensor) -> Gathered:
    return Gathered(gathered.rows[chosen], gathered.numbers[chosen], gathered.own[chosen])


def _belong(anchors: Tensor, others: Tensor) -> Tensor:
    """(n, m) whether a positive belongs to a query, or a query to a positive."""
    return (anchors[:, None, 0] == others[None, :, 0]) & (anchors[:, None, 1] + others[None, :, 1] == QUERY + POSITIVE)


def _same_item(anchors: Tensor, others: Tensor) -> Tensor:
    """(n, m) whether both are about one item that has a name."""
    return (anchors[:, None, 2] == others[None, :, 2]) & (anchors[:, None, 2] != UNNAMED)


@torch.no_grad()
def _top1(queries: Gathered, passages: Gathered) -> Tensor:
    own = _part(queries, queries.own)
    if not len(own.rows) or not len(passages.rows):
        return queries.rows.new_zeros(())
    best = (own.rows @ passages.rows.T).argmax(dim=1)
    return _belong(own.numbers, passages.numbers).gather(1, best[:, None]).sum().float()
