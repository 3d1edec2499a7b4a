"""Entities of a knowledge graph from what is said about them, and the entities that a relation leads to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from heads.embedding.contrast import contrast, shared_sum
from heads.embedding.index import ExactIndex
from heads.embedding.pooling import PoolingKind
from heads.embedding.targets import POSITIVE, QUERY, UNNAMED, PairTargetProcessor
from heads.embedding.vectors import VectorHead, ranked
from heads.entity_ranking.ranking import Triple, rank_triples
from heads.entity_ranking.relations import RelationModel, Relations
from heads.gather import gather
from layers.calls import EmbeddingResult, HeadContext, Result
from layers.head import HeadTarget, LossTerm
from layers.layout import ItemLayout

EntityLoss = Literal["margin", "softplus", "cross_entropy"]
INVERSE = "inverse of "
"""Before a relation's name in a call's prompt: the heads are asked for, the entity given being the tail."""


class TripleTargetProcessor(PairTargetProcessor):
    """As its base: a query is the head of a triple and names its ``relation``, the positive is the tail.

    Both name their entity as ``item``.

    Args:
        relations: Names of the relations, in order.
    """

    def __init__(self, relations: Sequence[str]) -> None:
        self.relations = tuple(relations)

    def __call__(self, value: Any, media: Sequence[ItemLayout]) -> HeadTarget:
        """Process a mapping; adds ``relation``, scalar, -1 where there is none.

        Raises:
            ValueError: If an entity has no name, or a query no known relation.
        """
        target = super().__call__(value, media)
        if target["item"] == UNNAMED:
            raise ValueError("pair item: expected the name of the entity, got none")
        number = -1
        if target["role"] == QUERY:
            name = self.text(value, "relation")
            if name not in self.relations:
                raise ValueError(f"pair relation: expected one of {', '.join(self.relations)}, got '{name}'")
            number = self.relations.index(name)
        return {**target, "relation": torch.tensor(number)}


@dataclass
class _Triples:
    """Rows of the heads and tails of triples among all vectors, and their relations."""

    heads: Tensor
    tails: Tensor
    relations: Tensor


class EntityRankingHead(VectorHead):
    """Inductive link prediction (BLP, https://arxiv.org/abs/2010.03496): entities are embedded from their descriptions.

    A call that says nothing answers with the vector of the entity that its conversation describes. A call that names a
    relation answers with the entities of an index, best first: those that the relation leads to from the entity, or
    after ``inverse of`` those from which it leads there. The entity is what the call's conversation describes, or the
    result of an earlier call that it refers to, which a task of the link ``text`` needs.

    Trained on triples whose ends are conversations of one record; every other entity of the pack, and of the packs that
    other processes compute at the same time, is a wrong tail and a wrong head, unless the triple holds with it there:
    ``margin`` is the mean of ``max(0, margin - s⁺ + s⁻)``, ``softplus`` that of ``½ (softplus(-s⁺) + softplus(s⁻))``,
    ``cross_entropy`` InfoNCE of the scores; each is the mean of both sides. Departure: the paper draws 64 wrong
    entities of a batch, here all of them count.

    Args:
        state_size: Width of the language model's states.
        embedding_size: Width of the vectors.
        relations: Names of the relations.
        model: Which score, see :class:`heads.entity_ranking.Relations`.
        pooling: How the states of a call become one, see :class:`heads.embedding.pooling.Pooling`.
        loss_kind: ``margin``, ``softplus`` or ``cross_entropy``.
        margin: Of the loss of that name.
        decay: Weight of the mean squares of the vectors of a triple.
        num_queries: Learned queries, for tasks of the link ``queries``.
        top_k: Entities of an answer.
    """

    links = frozenset({"text", "boxes", "hidden", "queries"})
    gathers: ClassVar[bool] = True

    def __init__(
        self,
        state_size: int,
        embedding_size: int,
        relations: Sequence[str],
        model: RelationModel = "transe",
        pooling: PoolingKind = "last",
        loss_kind: EntityLoss = "margin",
        margin: float = 1.0,
        decay: float = 0.0,
        num_queries: int = 0,
        top_k: int = 10,
    ) -> None:
        super().__init__(
            state_size, embedding_size, pooling, normalize=model == "transe", num_queries=num_queries, top_k=top_k
        )
        if len(set(relations)) != len(relations):
            raise ValueError(f"relations: expected different names, got {list(relations)}")
        if loss_kind not in get_args(EntityLoss):
            raise ValueError(f"loss_kind: expected one of {', '.join(get_args(EntityLoss))}, got '{loss_kind}'")
        self.names, self.loss_kind, self.margin, self.decay = tuple(relations), loss_kind, margin, decay
        self.relations = Relations(len(relations), embedding_size, model)
        self.target_processor = TripleTargetProcessor(relations)

    def forward(self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]) -> Tensor:
        """Vectors (n, embedding_size) of entities, see :meth:`layers.head.Head.forward`."""
        if states is not None:
            return super().forward(states, lengths, contexts)
        if not contexts:
            return self.relations.table.weight.new_zeros(0, self.embedding_size)
        return torch.stack([_earlier_vector(context) for context in contexts]).to(self.relations.table.weight.device)

    def loss(self, predictions: Tensor, targets: Sequence[HeadTarget]) -> LossTerm:
        """Summed over the triples of this process.

        Raises:
            ValueError: If a head has no tail.
        """
        fields = ("group", "role", "item", "relation")
        rows = [torch.stack([target[name] for name in fields]) for target in targets]
        numbers = torch.stack(rows) if rows else torch.zeros(0, len(fields), dtype=torch.int64)
        everyone = gather(predictions, numbers.to(predictions.device), across=self.training)
        group, role, item, relation = everyone.numbers.unbind(dim=1)
        heads = (role == QUERY).nonzero()[:, 0]
        total = self.zero_touch().to(predictions.device) + predictions.sum() * 0
        if not len(heads):
            return LossTerm(total, 0)
        belongs = (group[heads, None] == group) & (role == POSITIVE)
        if not bool(belongs.any(dim=1).all()):
            raise ValueError("pair: expected a tail for every head of a pack, got a head without")
        triples = _Triples(heads, belongs.float().argmax(dim=1), relation[heads])
        own = everyone.own[heads]
        found = shared_sum(lambda part, mine: self._losses(part, mine, triples, everyone.rows, item), own)
        return LossTerm(total + found, int(own.sum()))

    def _losses(self, part: Tensor, mine: bool, triples: _Triples, entities: Tensor, item: Tensor) -> Tensor:
        """The losses (r,) of some triples against all entities."""
        heads, tails, table = triples.heads[part], triples.tails[part], self.relations.table.weight
        relations = F.embedding(triples.relations[part], table if mine else table.detach())
        same = triples.relations[part, None] == triples.relations
        queries = self.relations.tail_queries(entities[heads], relations)
        right = same & (item[triples.heads][part, None] == item[triples.heads])
        forward = self._side(queries, entities, tails, _holding(right, item[triples.tails], item))
        queries = self.relations.head_queries(entities[tails], relations)
        right = same & (item[triples.tails][part, None] == item[triples.tails])
        backward = self._side(queries, entities, heads, _holding(right, item[triples.heads], item))
        squares = [part.square().mean(dim=1) for part in (entities[heads], entities[tails], relations)]
        return (forward + backward) / 2 + self.decay * torch.stack(squares).mean(dim=0)

    def _side(self, queries: Tensor, entities: Tensor, answers: Tensor, holding: Tensor) -> Tensor:
        """(r,) losses of one side; ``holding`` (r, N) is True at entities that are right, the answer among them."""
        scores = self.relations.compare(queries, entities)
        if self.loss_kind == "cross_entropy":
            positives = F.one_hot(answers, len(entities)).bool()
            return contrast(scores, positives, holding & ~positives)
        right, wrong = scores.gather(1, answers[:, None]), ~holding
        if self.loss_kind == "margin":
            losses = (self.margin - right + scores).relu()
        else:
            losses = (F.softplus(-right) + F.softplus(scores)) / 2
        return (losses * wrong).sum(dim=1) / wrong.sum(dim=1).clamp(min=1)

    def decode(self, predictions: Tensor, contexts: Sequence[HeadContext]) -> list[Result]:
        """The vector where a call says nothing, else the entities that the relation leads to."""
        results: list[Result] = []
        for vector, context in zip(predictions, contexts, strict=True):
            prompt = " ".join(context.call.prompt.split())
            if not prompt:
                results.append(EmbeddingResult(context.call, vector.detach().float().cpu()))
                continue
            index = self.recall(context.episode)
            if index is None:
                raise ValueError("an index of entities: expected one, prime the head with it, got none")
            query = self.query(vector, prompt)
            results += ranked([context], index, query[None], self.top_k, self.score)
        return results

    def query(self, entity: Tensor, relation: str) -> Tensor:
        """(size,) what is compared with every entity: the tails of this one, or after ``inverse of`` its heads.

        Raises:
            ValueError: For an unknown relation.
        """
        name = relation.removeprefix(INVERSE)
        if name not in self.names:
            raise ValueError(f"relation: expected one of {', '.join(self.names)}, got '{name}'")
        vector = self.relations.table.weight[self.names.index(name)]
        turn = self.relations.head_queries if relation.startswith(INVERSE) else self.relations.tail_queries
        return turn(entity.to(vector.device), vector)

    def score(self, queries: Tensor, items: Tensor) -> Tensor:
        """(n, m) how well entities (m, d) answer queries (n, d)."""
        return self.relations.compare(queries, items)

    def ranks(self, index: ExactIndex, triples: Sequence[Triple], known: Iterable[Triple] = ()) -> Tensor:
        """(n, 2) filtered, tie-averaged ranks of tails and heads, see :func:`rank_triples`."""
        return rank_triples(self.relations, self.names, index, triples, known)


def _holding(right: Tensor, answers: Tensor, item: Tensor) -> Tensor:
    """(r, N) whether an entity answers a triple's question in the batch.

    Args:
        right: (r, t) whether a triple of the batch asks the same.
        answers: (t,) entities that answer them.
        item: (N,) entities.
    """
    return (right.float() @ (answers[:, None] == item).float()) > 0


def _earlier_vector(context: HeadContext) -> Tensor:
    if not context.referred_results:
        raise ValueError(
            f"task '{context.call.task}': expected a reference to an earlier result, or a link that passes states"
        )
    result = context.referred_results[-1]
    if not isinstance(result, EmbeddingResult):
        raise ValueError(f"earlier result: expected an embedding, got a {type(result).__name__}")
    return result.vector
