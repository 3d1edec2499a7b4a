"""Heads over graphs: a node's class, and whether two nodes are linked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.attend import StateReader, perceptron
from heads.links import LinkedHead
from layers.calls import HeadContext, LabelResult, MediaFeatures, Result, ScoreResult
from layers.head import HeadTarget, Link, LossTerm
from layers.layout import ItemLayout

NODE_SETS = 4
# Of the (4 x 4) sets of one graph against the other's: all-all, self-all, all-self, self-out, self-in, out-self,
# in-self, out-out, out-in, in-out, in-in, self-self.
_COUNTED = [0, 4, 1, 6, 7, 9, 13, 10, 11, 14, 15, 5]


class LabelTargetProcessor:
    """Maps a label to its class index.

    Args:
        classes: The class names, in order.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    def __call__(self, value: Any, media: Sequence[ItemLayout]) -> HeadTarget:
        """Process a label string; returns ``label``, a scalar index.

        Raises:
            ValueError: If no class has this name.
        """
        if value not in self.classes:
            raise ValueError(f"unknown label {value!r}; the classes are {', '.join(self.classes)}")
        return {"label": torch.tensor(self.classes.index(value))}


class ScoreTargetProcessor:
    """Checks a probability."""

    def __call__(self, value: Any, media: Sequence[ItemLayout]) -> HeadTarget:
        """Process a number from 0 to 1; returns ``score``, a scalar.

        Raises:
            ValueError: If it is outside 0 to 1.
        """
        score = float(value)
        if not 0 <= score <= 1:
            raise ValueError(f"a score target lies between 0 and 1, got {score}")
        return {"score": torch.tensor(score)}


class NodeClassHead(LinkedHead):
    """Classifies the target node (node 0) of the latest graph.

    Args:
        state_size: Width of the language model's states.
        feature_size: Width of the graph encoder's features.
        classes: Class names.
        width: Inner width.
        num_layers: Cross-attention layers over the graph's nodes.
        num_heads: Attention heads.
        dropout: Dropout before the classifier.
        link: What crosses from the language model.
        num_queries: Learned queries, for the link ``queries``.
        text_encoder: Directory of a pretrained text encoder, for the links ``text`` and ``boxes``.
    """

    def __init__(
        self,
        state_size: int,
        feature_size: int,
        classes: Sequence[str],
        width: int = 64,
        num_layers: int = 1,
        num_heads: int = 4,
        dropout: float = 0.1,
        link: Link = "hidden",
        num_queries: int = 0,
        text_encoder: str | None = None,
    ) -> None:
        super().__init__(link, state_size, num_queries, text_encoder=text_encoder)
        if len(set(classes)) != len(classes) or len(classes) < 2:
            raise ValueError(f"classes must be at least two different names, got {list(classes)}")
        self.classes = tuple(classes)
        self.reader = StateReader(state_size, feature_size, width, num_layers, num_heads)
        self.classify = nn.Sequential(nn.Dropout(dropout), perceptron(2 * width, 2 * width, len(classes)))
        self.target_processor = LabelTargetProcessor(classes)

    def forward(self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]) -> Tensor:
        """Class logits (n, classes), see :meth:`layers.head.Head.forward`."""
        states, lengths = self.crossed(states, lengths, contexts)
        if not contexts:
            return states.new_zeros(0, len(self.classes))
        graphs = [_last_graphs(context, 1)[0] for context in contexts]
        reading = self.reader(states, lengths, [graph.features for graph in graphs])
        return self.classify(torch.cat([reading.query, reading.values[:, 0]], dim=-1))

    def loss(self, predictions: Tensor, targets: Sequence[HeadTarget]) -> LossTerm:
        """Summed cross-entropy."""
        if not targets:
            return LossTerm(self.zero_touch(), 0)
        labels = torch.stack([target["label"] for target in targets]).to(predictions.device)
        return LossTerm(F.cross_entropy(predictions.float(), labels, reduction="sum"), len(targets))

    def decode(self, predictions: Tensor, contexts: Sequence[HeadContext]) -> list[Result]:
        """The most probable class and the probability of each."""
        results: list[Result] = []
        for row, context in zip(predictions.float().softmax(dim=-1).tolist(), contexts, strict=True):
            probabilities = dict(zip(self.classes, row, strict=True))
            results.append(LabelResult(context.call, max(self.classes, key=probabilities.__getitem__), probabilities))
        return results


class LinkHead(LinkedHead):
    """Scores whether the target node of one graph links to the target node of another.

    A perceptron sees both target nodes, their product and difference, the state after it has read both graphs,
    and how much the graphs overlap. Nodes are matched softly by the cosine of their features, and the matches are
    counted among all nodes and among the targets' neighbours in either direction (a differentiable count of common
    neighbours, the oldest link predictor: https://doi.org/10.1002/asi.20591); and the sums of the nodes in these sets
    are compared by their cosine, which tells neighbourhoods that are about the same thing without a node in common.

    Args:
        state_size: Width of the language model's states.
        feature_size: Width of the graph encoder's features.
        node_size: Width of the graph's input ``x``, whose cosines find the same node in both graphs; 0 to match by
            encoder features only.
        width: Inner width.
        num_layers: Cross-attention layers over the nodes of both graphs.
        num_heads: Attention heads.
        dropout: Dropout before the classifier.
        link: What crosses from the language model.
        num_queries: Learned queries, for the link ``queries``.
        text_encoder: Directory of a pretrained text encoder, for the links ``text`` and ``boxes``.
    """

    def __init__(
        self,
        state_size: int,
        feature_size: int,
        node_size: int = 0,
        width: int = 64,
        num_layers: int = 1,
        num_heads: int = 4,
        dropout: float = 0.1,
        link: Link = "hidden",
        num_queries: int = 0,
        text_encoder: str | None = None,
    ) -> None:
        super().__init__(link, state_size, num_queries, text_encoder=text_encoder)
        self.node_size = node_size
        self.reader = StateReader(state_size, feature_size, width, num_layers, num_heads)
        self.side = nn.Parameter(torch.randn(2, feature_size) * 0.02)
        self.match_projection = nn.Linear(feature_size, width)
        self.match_scale = nn.Parameter(torch.tensor([8.0, 8.0]))
        self.match_threshold = nn.Parameter(torch.tensor([0.8, 0.8]))
        overlaps = (len(_COUNTED) + NODE_SETS**2) * (2 if node_size else 1)
        self.overlap_norm = nn.LayerNorm(overlaps)
        self.classify = nn.Sequential(nn.Dropout(dropout), perceptron(5 * width + overlaps, 2 * width, 1))
        self.target_processor = ScoreTargetProcessor()

    def forward(self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]) -> Tensor:
        """Link logits (n,), see :meth:`layers.head.Head.forward`."""
        states, lengths = self.crossed(states, lengths, contexts)
        if not contexts:
            return states.new_zeros(0)
        pairs = [_last_graphs(context, 2) for context in contexts]
        both = [torch.cat([a.features + self.side[0], b.features + self.side[1]]) for a, b in pairs]
        reading = self.reader(states, lengths, both)
        ends = torch.stack([torch.stack([a.features[0], b.features[0]]) for a, b in pairs])
        a, b = self.reader.feature_projection(ends).unbind(dim=1)
        overlaps = torch.stack([self._overlaps(first, second) for first, second in pairs])
        pair = torch.cat([reading.query, a, b, a * b, a - b, self.overlap_norm(overlaps)], dim=-1)
        return self.classify(pair).squeeze(-1)

    def loss(self, predictions: Tensor, targets: Sequence[HeadTarget]) -> LossTerm:
        """Summed binary cross-entropy."""
        if not targets:
            return LossTerm(self.zero_touch(), 0)
        scores = torch.stack([target["score"] for target in targets]).to(predictions.device)
        return LossTerm(F.binary_cross_entropy_with_logits(predictions.float(), scores, reduction="sum"), len(targets))

    def decode(self, predictions: Tensor, contexts: Sequence[HeadContext]) -> list[Result]:
        """The probability of the link."""
        scores = predictions.float().sigmoid().tolist()
        return [ScoreResult(context.call, score) for score, context in zip(scores, contexts, strict=True)]

    def _overlaps(self, a: MediaFeatures, b: MediaFeatures) -> Tensor:
        """(overlaps,) of each view of the nodes: numbers of matches, log(1 + n), and cosines of sets."""
        views = [(self.match_projection(a.features), self.match_projection(b.features))]
        if self.node_size:
            views.append((a.inputs["x"].to(a.features), b.inputs["x"].to(b.features)))
        sets_a, sets_b = _node_sets(a), _node_sets(b)
        found = []
        for index, (left, right) in enumerate(views):
            cosines = _unit(left) @ _unit(right).T
            match = torch.sigmoid(self.match_scale[index] * (cosines - self.match_threshold[index]) * 4)
            table = (sets_a @ match @ sets_b.T).flatten()  # (4 x 4) sets of a against sets of b
            found.append(table[_COUNTED].clamp(min=0).log1p())
            found.append((_unit(sets_a @ left) @ _unit(sets_b @ right).T).flatten())
        return torch.cat(found)


def _unit(rows: Tensor) -> Tensor:
    """Rows of length one; those of zeros, an empty set's, stay zeros."""
    return F.normalize(rows, dim=-1)


def _node_sets(graph: MediaFeatures) -> Tensor:
    """(NODE_SETS, nodes) indicators: all nodes, the target, those it points to, those that point to it."""
    sets = graph.features.new_zeros(NODE_SETS, graph.features.shape[0])
    source, destination = graph.inputs["edge_index"]
    sets[0] = 1
    sets[1, 0] = 1
    sets[2, destination[source == 0]] = 1
    sets[3, source[destination == 0]] = 1
    return sets


def _last_graphs(context: HeadContext, count: int) -> list[MediaFeatures]:
    graphs = context.of_kind("graph")
    if len(graphs) < count:
        raise ValueError(f"task '{context.call.task}' needs {count} graph(s), the conversation has {len(graphs)}")
    return graphs[-count:]
