"""What heads of vectors share: pooling, experts, projection, and the index that a call is answered from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from heads.attend import full_precision, group_indices, perceptron, required_states
from heads.embedding.experts import DomainExperts
from heads.embedding.index import ExactIndex, Scorer, dot
from heads.embedding.pooling import Pooling, PoolingKind
from layers.calls import EmbeddingResult, HeadContext, RankingResult, Result
from layers.head import Head, HeadTarget, LossTerm


class VectorHead(Head):
    """One vector per call; once primed with an index, a ranking of its items.

    Args:
        state_size: Width of the language model's states.
        embedding_size: Width of the vectors.
        pooling: How the states of a call become one, see :class:`heads.embedding.pooling.Pooling`.
        domains: Tasks that have an expert each, see :class:`heads.embedding.experts.DomainExperts`; none without.
        hidden_size: Width between two layers of the projection; 0 for a single one without bias.
        normalize: Whether vectors have unit length.
        num_queries: Learned queries, for tasks of the link ``queries``.
        top_k: Items of an answer.
    """

    links = frozenset({"hidden", "queries"})

    def __init__(
        self,
        state_size: int,
        embedding_size: int,
        pooling: PoolingKind = "last",
        domains: Sequence[str] = (),
        hidden_size: int = 0,
        normalize: bool = True,
        num_queries: int = 0,
        top_k: int = 10,
    ) -> None:
        super().__init__(num_queries, state_size)
        if top_k < 1:
            raise ValueError(f"top_k: expected at least 1, got {top_k}")
        self.embedding_size, self.normalize, self.top_k = embedding_size, normalize, top_k
        self.experts = DomainExperts(state_size, domains) if domains else None
        self.pooling = Pooling(state_size, pooling)
        self.projection: nn.Module = nn.Linear(state_size, embedding_size, bias=False)
        if hidden_size:
            self.projection = perceptron(state_size, hidden_size, embedding_size)

    def forward(self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]) -> Tensor:
        """Vectors (n, embedding_size), see :meth:`layers.head.Head.forward`."""
        states = required_states(states, type(self).__name__)
        if not contexts:
            return states.new_zeros(0, self.embedding_size)
        if self.experts is not None:
            states = self.experts(states, lengths, [context.call.task for context in contexts])
        vectors = full_precision(self.projection(self.pooling(states, lengths)))
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    @abstractmethod
    def loss(self, predictions: Tensor, targets: Sequence[HeadTarget]) -> LossTerm:
        """Compare vectors with targets, see :meth:`layers.head.Head.loss`."""

    def decode(self, predictions: Tensor, contexts: Sequence[HeadContext]) -> list[Result]:
        """The vector, or where the head was primed the best items of the index."""
        indices = [self.recall(context.episode) for context in contexts]
        results: list[Result] = [
            EmbeddingResult(context.call, vector)
            for context, vector in zip(contexts, predictions.detach().float().cpu(), strict=True)
        ]
        for group in group_indices([id(index) for index in indices]):  # mostly all of them
            index = indices[group[0]]
            if index is not None:
                asked = [contexts[place] for place in group]
                found = ranked(asked, index, predictions[group], self.top_k, self.score)
                for place, result in zip(group, found, strict=True):
                    results[place] = result
        return results

    def score(self, queries: Tensor, items: Tensor) -> Tensor:
        """(n, m) how well items (m, d) answer queries (n, d)."""
        return dot(queries, items)

    def prime(self, support: Any, episode: str = "") -> None:
        """Give the head an index to answer from.

        Args:
            support: An :class:`heads.embedding.ExactIndex` of vectors that this head made.
            episode: The episode it is for; all by default.

        Raises:
            ValueError: If it is none, or its vectors have another width.
        """
        if not isinstance(support, ExactIndex) or support.size != self.embedding_size:
            got = f"one of width {support.size}" if isinstance(support, ExactIndex) else type(support).__name__
            raise ValueError(f"{type(self).__name__}: expected an index of width {self.embedding_size}, got {got}")
        self.memory[episode] = support


def ranked(
    contexts: Sequence[HeadContext], index: ExactIndex, queries: Tensor, k: int, score: Scorer
) -> list[RankingResult]:
    """The best items of an index for queries (n, d), one per context."""
    scores, rows = index.search(queries.detach().float(), k, score)
    return [
        RankingResult(context.call, tuple(index.items[row] for row in own), tuple(values))
        for context, own, values in zip(contexts, rows.tolist(), scores.tolist(), strict=True)
    ]
