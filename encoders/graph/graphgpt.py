"""GraphGPT's graph transformer (https://arxiv.org/abs/2310.13023), as its authors released it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch_geometric.utils import scatter

from encoders.graph.processor import checked_edges, graph_layout
from layers.encoder import Encoder
from layers.layout import ItemLayout, Layout

CLAMP = 10.0
"""Attention logits lie between this and its negative."""
EPSILON = 1e-8
"""What the released layer adds to the sum of a node's weights."""


@dataclass
class NodeFeatureProcessor:
    """Turns a graph whose nodes have numbers into ``x`` (nodes, width) and ``edge_index`` (2, E).

    Args:
        feature_width: Numbers per node.
        max_nodes: Larger graphs are refused.
    """

    feature_width: int = 128
    max_nodes: int = 1024
    kind: str = field(default="graph", init=False)

    def layout(self, size: Sequence[int]) -> ItemLayout:
        """The features of a graph of ``size`` (nodes,): one per node.

        Raises:
            ValueError: If the graph is empty or larger than ``max_nodes``.
        """
        return graph_layout(size, self.max_nodes)

    def __call__(self, raw: Any) -> tuple[dict[str, Tensor], ItemLayout]:
        """Prepare a :class:`layers.media.Graph`; repeated edges count as often as they stand.

        Raises:
            ValueError: If it is empty or too large, an edge names a node that it does not have, or its nodes lack
                their numbers.
        """
        edges, wanted = checked_edges(raw), (raw.num_nodes, self.feature_width)
        features = raw.node_features
        if features is None or tuple(features.shape) != wanted:
            given = "none" if features is None else tuple(features.shape)
            raise ValueError(f"expected node_features {wanted}, got {given}")
        return {"x": features, "edge_index": edges}, self.layout((raw.num_nodes,))

    def fingerprint(self) -> Mapping[str, Any]:
        """Every field, JSON-serialisable."""
        return {"processor": type(self).__name__, **asdict(self)}


class GraphGPTEncoder(Encoder):
    """Attention over edges, without scale, feed-forward block or positions; one feature per node.

    In the released code a message arrives at ``edge_index[0]``, so that with edges from neighbours to the target the
    target hears nobody unless it was drawn as somebody's neighbour, too. Here messages arrive where edges point, by
    default; converted checkpoints say ``messages_to: source``, which is what their language model was trained on.

    Args:
        feature_width: Numbers per node that come in.
        width: Inner width.
        hidden_size: Width of the features.
        num_layers: Layers, and thus hops that a message travels.
        num_heads: Attention heads; must divide ``width``.
        norm: Whether layers end with a norm.
        position: Whether one learned vector is added to every node.
        messages_to: "destination" (``edge_index[1]``) or "source" (``edge_index[0]``).
        dropout: Probability, on the projected nodes.
        max_nodes: Larger graphs are refused by the processor.

    Raises:
        ValueError: If the heads do not divide the width, or messages are to go elsewhere.
    """

    kind: ClassVar[str] = "graph"

    def __init__(
        self,
        feature_width: int = 128,
        width: int = 128,
        hidden_size: int = 128,
        num_layers: int = 3,
        num_heads: int = 8,
        norm: bool = True,
        position: bool = False,
        messages_to: Literal["destination", "source"] = "destination",
        dropout: float = 0.1,
        max_nodes: int = 1024,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"{num_heads} heads do not divide a width of {width}")
        if messages_to not in ("destination", "source"):
            raise ValueError(f"messages_to: expected destination or source, got '{messages_to}'")
        self.hidden_size = hidden_size
        self.messages_to = messages_to
        self.processor = NodeFeatureProcessor(feature_width, max_nodes)
        self.input_projection = nn.Linear(feature_width, width)
        self.position = nn.Parameter(torch.empty(1, width).uniform_(-0.02, 0.02)) if position else None
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(_Layer(width, num_heads, norm) for _ in range(num_layers))
        self.output_projection = nn.Linear(width, hidden_size)

    def collate(self, items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Join the graphs into one of unconnected parts: ``x`` (ΣN, width), ``edge_index`` (2, ΣE)."""
        edges, offset = [], 0
        for item in items:
            edges.append(item["edge_index"] + offset)
            offset += len(item["x"])
        return {"x": torch.cat([item["x"] for item in items]), "edge_index": torch.cat(edges, dim=1)}

    def forward(self, inputs: Mapping[str, Tensor], layout: Layout) -> Tensor:
        """Encode to (ΣN, d), one feature per node."""
        hidden = self.input_projection(inputs["x"].to(self.input_projection.weight.dtype))
        hidden = self.dropout(hidden if self.position is None else hidden + self.position)
        source, destination = inputs["edge_index"]
        ends = (destination, source) if self.messages_to == "destination" else (source, destination)
        for layer in self.layers:
            hidden = layer(hidden, *ends)
        features: Tensor = self.output_projection(hidden)
        return features


class _Layer(nn.Module):
    """Attention of each node over the edges that end there, with a residual and a norm."""

    def __init__(self, width: int, num_heads: int, norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        for linear in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(linear.weight)
        self.norm = nn.LayerNorm(width, eps=1e-6) if norm else nn.Identity()

    def forward(self, hidden: Tensor, to: Tensor, come_from: Tensor) -> Tensor:
        """(N, d) nodes; edge e takes a message from ``come_from[e]`` to ``to[e]``."""
        heads = (self.num_heads, -1)
        queries = self.query(hidden).unflatten(-1, heads)[to]
        keys = self.key(hidden).unflatten(-1, heads)[come_from]
        values = self.value(hidden).unflatten(-1, heads)[come_from]
        weights = (queries * keys).sum(dim=-1).clamp(-CLAMP, CLAMP).exp()  # (E, heads)
        total = scatter(weights, to, dim_size=len(hidden)) + EPSILON
        messages = (weights / total[to])[..., None] * values
        updated: Tensor = self.norm(hidden + scatter(messages.flatten(1), to, dim_size=len(hidden)))
        return updated
