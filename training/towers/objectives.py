"""What a tower learns before a language model reads it (stage 0): one objective per modality.

An objective has two halves: a target rule, weightless and picklable, that makes tensors of a record in the data
module, and a module that compares them with the encoder's features through a small head that is thrown away.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.records import Record
from layers.encoder import Encoder
from layers.head import LossTerm
from layers.layout import ItemLayout, Layout


@dataclass
class Encode:
    """A tower at work on a batch.

    Args:
        encoder: The tower.
        layout: Of the batch.
        standardise: What its features go through, for a probe.
    """

    encoder: Encoder
    layout: Layout
    standardise: nn.Module | None = None

    def __call__(self, items: list[dict[str, Tensor]]) -> Tensor:
        """Items to features (ΣN, d), in the order of the batch's layout."""
        features: Tensor = self.encoder(self.encoder.collate(items), self.layout)
        return features if self.standardise is None else self.standardise(features)


@dataclass
class TowerBatch:
    """Processed items of one modality with their targets.

    Args:
        items: Encoder inputs per item.
        layout: The encoder's output per item.
        targets: What the objective's target rule made of each record.
        keys: Sample keys.
    """

    items: list[dict[str, Tensor]]
    layout: Layout
    targets: list[dict[str, Tensor]]
    keys: list[str]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TowerBatch:
        """The same batch on a device."""

        def move(rows: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
            return [{name: value.to(device, non_blocking=non_blocking) for name, value in row.items()} for row in rows]

        return replace(self, items=move(self.items), targets=move(self.targets))


@dataclass
class Outcome:
    """Losses by name, and sums with their counts for the metrics of a validation epoch."""

    losses: dict[str, LossTerm]
    metrics: dict[str, tuple[Tensor, int]] = field(default_factory=dict)


class TargetRule(Protocol):
    """Makes an objective's targets of a record: picklable, without weights."""

    def __call__(self, record: Record, layout: ItemLayout) -> dict[str, Tensor] | None:
        """The targets of the record's medium, or None if the record has nothing to learn from.

        Raises:
            ValueError: If what should be there is malformed.
        """


class TowerObjective(nn.Module, ABC):
    """Compares an encoder's features with targets.

    Attributes:
        hidden_size: Width of the features that it takes.
        target_rule: Makes its targets.
        loss_weights: Loss name -> weight; 1 where it is not named.
    """

    hidden_size: int
    target_rule: TargetRule
    loss_weights: dict[str, float]

    @abstractmethod
    def forward(self, encode: Encode, batch: TowerBatch) -> Outcome:
        """Encode a batch and compare.

        Args:
            encode: Items to features (ΣN, d), in the order of ``batch.layout``.
            batch: Its items may be changed before they are encoded, which is how inputs are masked in training.
        """


class NoTargets:
    """The rule of an objective that needs no annotation."""

    def __call__(self, record: Record, layout: ItemLayout) -> dict[str, Tensor] | None:
        """Nothing, for every record."""
        return {}


class TextGraphObjective(TowerObjective):
    """GraphGPT's text-graph grounding (https://arxiv.org/abs/2310.13023) on hashed node texts.

    With H the features of nodes, T the embeddings of their own texts, N those of neighbours' texts averaged, all of
    unit norm, and ``ℓ(A, B) = ½ [CE(A Bᵀ/τ) + CE(B Aᵀ/τ)]``: ``L = ℓ(H, T) + λ ℓ(H, N) + λ ℓ(T, N)``.
    Departures: the text tower is a perceptron over the processor's hashed texts; some nodes' texts are hidden from
    the encoder, which must then read them off their neighbours; nodes of one text are no negatives of each other.

    Args:
        hidden_size: Width of the encoder's features.
        text_width: Width of the processor's hashed texts.
        neighbour_weight: λ.
        temperature: τ.
        hidden_share: Share of the nodes whose text the encoder does not see.
        max_nodes: Nodes contrasted per batch.
        num_neighbours: Sampled neighbours per node.
    """

    def __init__(
        self,
        hidden_size: int,
        text_width: int = 1024,
        neighbour_weight: float = 1.0,
        temperature: float = 0.07,
        hidden_share: float = 0.3,
        max_nodes: int = 512,
        num_neighbours: int = 3,
    ) -> None:
        super().__init__()
        self.hidden_size, self.temperature = hidden_size, temperature
        self.hidden_share, self.max_nodes, self.num_neighbours = hidden_share, max_nodes, num_neighbours
        self.target_rule = NoTargets()
        self.loss_weights = {"node_neighbours": neighbour_weight, "text_neighbours": neighbour_weight}
        self.project = nn.Linear(hidden_size, hidden_size)
        self.text_tower = nn.Sequential(
            nn.Linear(text_width, 2 * hidden_size), nn.GELU(), nn.Linear(2 * hidden_size, hidden_size)
        )

    def forward(self, encode: Encode, batch: TowerBatch) -> Outcome:
        """The three contrasts, and how often a node finds its own text among the batch's."""
        texts = torch.cat([item["x"] for item in batch.items])  # (ΣN, W)
        hidden = torch.rand(len(texts), device=texts.device) < self.hidden_share
        shown = batch.layout.split((~hidden[:, None]).to(texts.dtype))
        features = encode([{**item, "shown": own} for item, own in zip(batch.items, shown, strict=True)])
        chosen = torch.randperm(len(texts), device=texts.device)
        chosen = chosen[texts[chosen].any(-1)][: self.max_nodes]
        _, identity = torch.unique(texts[chosen], dim=0, return_inverse=True)
        neighbours = self._sample_neighbours(batch)[chosen]  # (n, k), -1 where there is none
        known = neighbours >= 0
        nodes = F.normalize(self.project(features[chosen]).float(), dim=-1)
        own = F.normalize(self.text_tower(texts[chosen]).float(), dim=-1)
        around = self.text_tower(texts[neighbours.clamp(min=0)]).float() * known[..., None]
        around = F.normalize(around.sum(1), dim=-1)
        linked = known.any(1)
        pairs = {
            "node_text": (nodes, own, torch.ones_like(linked)),
            "node_neighbours": (nodes, around, linked),
            "text_neighbours": (own, around, linked),
        }
        losses = {name: self._contrast(a[keep], b[keep], identity[keep]) for name, (a, b, keep) in pairs.items()}
        found = self._logits(nodes, own, identity).argmax(1) == torch.arange(len(chosen), device=texts.device)
        metrics = {
            name: (found[which].double().sum(), int(which.sum()))
            for name, which in (("seen_text_top1", ~hidden[chosen]), ("hidden_text_top1", hidden[chosen]))
        }
        return Outcome(losses, metrics)

    def _logits(self, a: Tensor, b: Tensor, identity: Tensor) -> Tensor:
        same = (identity[:, None] == identity) & ~torch.eye(len(a), dtype=torch.bool, device=a.device)
        return (a @ b.T / self.temperature).masked_fill(same, -torch.inf)

    def _contrast(self, a: Tensor, b: Tensor, identity: Tensor) -> LossTerm:
        if len(a) == 0:
            return LossTerm(self.project.weight.sum() * 0, 0)
        truth = torch.arange(len(a), device=a.device)
        logits = self._logits(a, b, identity)
        total = 0.5 * (
            F.cross_entropy(logits, truth, reduction="sum") + F.cross_entropy(logits.T, truth, reduction="sum")
        )
        return LossTerm(total, len(a))

    def _sample_neighbours(self, batch: TowerBatch) -> Tensor:
        """Up to k distinct neighbours per node, of either direction: (ΣN, k) indices into the batch, -1 for none."""
        rows, offset = [], 0
        for item, count in zip(batch.items, batch.layout.lengths, strict=True):
            edges = item["edge_index"]
            adjacent = torch.zeros(count, count, dtype=torch.bool, device=edges.device)
            adjacent[edges[0], edges[1]] = adjacent[edges[1], edges[0]] = True
            adjacent.fill_diagonal_(False)
            scores = torch.rand(count, count, device=edges.device).masked_fill(~adjacent, -1)
            best, index = scores.topk(min(self.num_neighbours, count), dim=1)
            index = torch.where(best >= 0, index + offset, -1)
            rows.append(F.pad(index, (0, self.num_neighbours - index.shape[1]), value=-1))
            offset += count
        return torch.cat(rows)
