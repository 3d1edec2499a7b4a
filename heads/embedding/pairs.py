"""Scores of pairs from the vectors of their halves, learned from a model that reads both halves at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.embedding.pooling import PoolingKind
from heads.embedding.targets import POSITIVE, QUERY, PairTargetProcessor, pair_numbers
from heads.embedding.vectors import VectorHead
from layers.head import HeadTarget, LossTerm
from layers.layout import ItemLayout

NO_LABEL = -1
_PAIRS = 1 << 20


class ScoredPairTargetProcessor(PairTargetProcessor):
    """As its base, and of a query what its pair is: ``label``, and the ``teacher``'s scores.

    Args:
        classes: Class names; none for a pair that has a score.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    def __call__(self, value: Any, media: Sequence[ItemLayout]) -> HeadTarget:
        """Process a mapping; adds ``label``, scalar, and ``teacher`` (C,), both NaN or -1 where there is none.

        Raises:
            ValueError: If a label is none of the classes, the teacher's scores are not as many, or a query has neither.
        """
        target = super().__call__(value, media)
        size, given, teacher = max(1, len(self.classes)), value.get("label"), value.get("teacher")
        if given is not None and self.classes and given not in self.classes:
            raise ValueError(f"pair label: expected one of {', '.join(self.classes)}, got {given!r}")
        if teacher is not None and (not isinstance(teacher, list) or len(teacher) != size):
            raise ValueError(f"pair teacher: expected {size} scores, got {teacher!r}")
        if target["role"] == QUERY and given is None and teacher is None:
            raise ValueError("pair: expected a label or a teacher's scores of a query, got neither")
        if self.classes:
            label = torch.tensor(NO_LABEL if given is None else self.classes.index(given))
        else:
            label = torch.tensor(float("nan") if given is None else float(given))
        scores = torch.full((size,), float("nan")) if teacher is None else torch.tensor(teacher, dtype=torch.float32)
        return {**target, "label": label, "teacher": scores}


class PairScoreHead(VectorHead):
    """Classifies or scores pairs of which each half was read alone (https://arxiv.org/abs/1908.05161).

    With u and v the vectors of the halves, ``z = W₂ ReLU(W₁ [u, v, u∘v, |u - v|])``, and the loss of a pair is
    ``(1 - c) · task + c · ‖z - z_teacher‖²``, task being the cross-entropy of its class, or the squared error of its
    score. The teacher is any model that reads both halves at once; its logits stand in the record. Vectors of many
    candidates are made once, and a query is compared with them at the cost of a perceptron (:meth:`score`). Departure:
    states come from the last layer, where the paper joins its encoder's last four.

    Args:
        state_size: Width of the language model's states.
        embedding_size: Width of the vectors.
        classes: Class names of pairs; none where a pair has a score.
        pooling: How the states of a call become one, see :class:`heads.embedding.pooling.Pooling`.
        domains: Tasks that have an expert each, see :class:`heads.embedding.experts.DomainExperts`; none without.
        pair_size: Width of W₁.
        distillation: c.
        ranked_class: The class by whose log-probability candidates are ranked; the last by default.
        num_queries: Learned queries, for tasks of the link ``queries``.
        top_k: Items of an answer.
    """

    def __init__(
        self,
        state_size: int,
        embedding_size: int,
        classes: Sequence[str] = (),
        pooling: PoolingKind = "last",
        domains: Sequence[str] = (),
        pair_size: int = 512,
        distillation: float = 0.5,
        ranked_class: str | None = None,
        num_queries: int = 0,
        top_k: int = 10,
    ) -> None:
        super().__init__(
            state_size, embedding_size, pooling, domains, normalize=False, num_queries=num_queries, top_k=top_k
        )
        if len(set(classes)) != len(classes) or len(classes) == 1:
            raise ValueError(f"classes: expected none, or at least two different names, got {list(classes)}")
        if not 0 <= distillation <= 1:
            raise ValueError(f"distillation: expected 0 to 1, got {distillation}")
        if ranked_class is not None and ranked_class not in classes:
            raise ValueError(f"ranked_class: expected one of {', '.join(classes)}, got '{ranked_class}'")
        self.classes, self.distillation = tuple(classes), distillation
        self.ranked_class = self.classes.index(ranked_class) if ranked_class is not None else len(classes) - 1
        self.compare = nn.Sequential(
            nn.Linear(4 * embedding_size, pair_size), nn.ReLU(), nn.Linear(pair_size, max(1, len(classes)))
        )
        self.target_processor = ScoredPairTargetProcessor(classes)

    def logits(self, first: Tensor, second: Tensor) -> Tensor:
        """(n, C) of pairs of vectors (n, d)."""
        logits: Tensor = self.compare(torch.cat([first, second, first * second, (first - second).abs()], dim=-1))
        return logits

    def loss(self, predictions: Tensor, targets: Sequence[HeadTarget]) -> LossTerm:
        """Summed over pairs, a query with the positive of its group; ``task`` and ``distance`` are its parts.

        Raises:
            ValueError: If a query has no positive.
        """
        numbers = pair_numbers(targets, predictions.device)
        queries = (numbers[:, 1] == QUERY).nonzero()[:, 0]
        if not len(queries):
            return LossTerm(self.zero_touch(), 0)
        belongs = (numbers[queries, None, 0] == numbers[None, :, 0]) & (numbers[None, :, 1] == POSITIVE)
        if not bool(belongs.any(dim=1).all()):
            raise ValueError("pair: expected a positive for every query of a pack, got a query without")
        logits = self.logits(predictions[queries], predictions[belongs.float().argmax(dim=1)])
        own = [targets[place] for place in queries.tolist()]
        labels = torch.stack([target["label"] for target in own]).to(logits.device)
        teacher = torch.stack([target["teacher"] for target in own]).to(logits)
        task, distance = self._task(logits, labels), self._distance(logits, teacher)
        total = (1 - self.distillation) * task + self.distillation * distance
        return LossTerm(total, len(own), {"task": task.detach(), "distance": distance.detach()})

    def _task(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.classes:
            return F.cross_entropy(logits.float(), labels, ignore_index=NO_LABEL, reduction="sum")
        known = labels.isfinite()
        return (logits[known, 0] - labels[known].to(logits)).square().sum()

    def _distance(self, logits: Tensor, teacher: Tensor) -> Tensor:
        known = teacher.isfinite().all(dim=1)
        return (logits[known] - teacher[known]).square().sum()

    def score(self, queries: Tensor, items: Tensor) -> Tensor:
        """(n, m) scores of all pairs: log-probabilities of the ranked class, or the score of a pair."""
        rows = max(1, _PAIRS // max(1, len(items) * 4 * self.embedding_size))
        return torch.cat([self._score(part, items) for part in queries.split(rows)])

    def _score(self, queries: Tensor, items: Tensor) -> Tensor:
        first = queries[:, None].expand(-1, len(items), -1).flatten(0, 1)
        logits = self.logits(first, items.repeat(len(queries), 1)).view(len(queries), len(items), -1)
        return logits.log_softmax(dim=-1)[..., self.ranked_class] if self.classes else logits[..., 0]
