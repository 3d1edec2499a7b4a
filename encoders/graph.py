"""A graph transformer on torch_geometric: messages in both directions over hashed node texts and structure.

Follows the graph encoder of GraphGPT (https://arxiv.org/abs/2310.13023): one feature per node, one token per node.
Departures: attention is scaled, messages arrive at ``edge_index[1]`` and, with an edge type of their own, run
backwards too; nodes carry random-walk positional encodings, degrees and a flag of the target; layers have an FFN.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import TransformerConv
from torch_geometric.transforms import AddRandomWalkPE
from torch_geometric.utils import coalesce, degree, to_undirected

from layers.encoder import Encoder
from layers.layout import ItemLayout, Layout
from layers.media import Graph

WORD_PATTERN = re.compile(r"[^\W_]+")
DEGREE_FEATURES = 2
TARGET_FEATURES = 1


@lru_cache(maxsize=4096)
def hash_text(text: str, width: int) -> Tensor:
    """Hashed bag of lower-case words and of their character trigrams: (width,), counts of unit L2 norm."""
    counts: Counter[int] = Counter()
    for word in WORD_PATTERN.findall(text.lower()):
        marked = f"^{word}$"
        grams = [f"w:{word}", *(marked[i : i + 3] for i in range(len(marked) - 2))]
        counts.update(zlib.crc32(gram.encode()) % width for gram in grams)
    vector = torch.zeros(width)
    if counts:
        vector[list(counts)] = torch.tensor([float(count) for count in counts.values()])
        vector /= vector.norm()
    return vector


@dataclass
class GraphProcessor:
    """Turns a graph into node features ``x``, ``structure`` and ``edge_index``.

    Args:
        text_width: Buckets of the hashed node texts.
        walk_length: Steps of the random-walk positional encoding on the undirected graph.
        max_nodes: Larger graphs are refused.
    """

    text_width: int = 1024
    walk_length: int = 8
    max_nodes: int = 256
    kind: str = field(default="graph", init=False)

    @property
    def structure_width(self) -> int:
        """Random-walk return probabilities, logarithmic in- and out-degree, and the target flag."""
        return self.walk_length + DEGREE_FEATURES + TARGET_FEATURES

    def layout(self, size: Sequence[int]) -> ItemLayout:
        """The features of a graph of ``size`` (nodes,): one per node.

        Raises:
            ValueError: If the graph is empty or larger than ``max_nodes``.
        """
        if len(size) != 1 or not 1 <= size[0] <= self.max_nodes:
            raise ValueError(f"expected a graph of 1 to {self.max_nodes} nodes, got size {tuple(size)}")
        return ItemLayout(grid=(size[0],), original_size=(size[0],))

    def __call__(self, raw: Any) -> tuple[dict[str, Tensor], ItemLayout]:
        """Featurise a :class:`layers.media.Graph`.

        Raises:
            ValueError: If it is empty or too large, or an edge names a node that it does not have.
        """
        if not isinstance(raw, Graph):
            raise ValueError(f"expected layers.media.Graph, got {type(raw).__name__}")
        layout, nodes = self.layout((raw.num_nodes,)), raw.num_nodes
        edges = raw.edge_index
        if edges.dim() != 2 or edges.shape[0] != 2 or edges.dtype != torch.int64:
            raise ValueError(f"expected edge_index (2, E) of int64, got {tuple(edges.shape)} {edges.dtype}")
        if edges.numel() and (int(edges.min()) < 0 or int(edges.max()) >= nodes):
            raise ValueError(f"expected edges between nodes 0 to {nodes - 1}, got node {_outside(edges, nodes)}")
        edges = coalesce(edges, num_nodes=nodes)
        x = torch.stack([hash_text(text, self.text_width) for text in raw.node_texts])
        return {"x": x, "structure": self._structure(edges, nodes), "edge_index": edges}, layout

    def fingerprint(self) -> Mapping[str, Any]:
        """Every field, JSON-serialisable."""
        return {"processor": type(self).__name__, **asdict(self)}

    def _structure(self, edges: Tensor, nodes: int) -> Tensor:
        """(nodes, structure_width)."""
        data = Data(edge_index=to_undirected(edges, num_nodes=nodes), num_nodes=nodes)
        walks = AddRandomWalkPE(self.walk_length, attr_name="walks")(data).walks
        degrees = torch.stack([degree(edges[row], nodes).log1p() for row in (1, 0)], dim=1)
        target = torch.zeros(nodes, TARGET_FEATURES)
        target[0] = 1.0
        return torch.cat([walks.reshape(nodes, self.walk_length), degrees, target], dim=1)


def _outside(edges: Tensor, nodes: int) -> int:
    wrong = edges[(edges < 0) | (edges >= nodes)]
    return int(wrong[0])


class GraphTransformerLayer(nn.Module):
    """Pre-norm attention over edges, then a feed-forward block, each with a residual.

    Args:
        hidden_size: Width of the nodes.
        num_heads: Attention heads.
        edge_size: Width of the edge features.
    """

    def __init__(self, hidden_size: int, num_heads: int, edge_size: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = TransformerConv(hidden_size, hidden_size // num_heads, heads=num_heads, edge_dim=edge_size)
        self.ffn_norm = nn.LayerNorm(hidden_size)
        self.ffn = nn.Sequential(
            nn.Linear(hidden_size, 2 * hidden_size), nn.GELU(), nn.Linear(2 * hidden_size, hidden_size)
        )

    def forward(self, hidden: Tensor, edge_index: Tensor, edge_features: Tensor) -> Tensor:
        """Update (N, d) nodes with messages along (2, E) edges, which arrive at ``edge_index[1]``."""
        hidden = hidden + self.attention(self.attention_norm(hidden), edge_index, edge_features)
        updated: Tensor = hidden + self.ffn(self.ffn_norm(hidden))
        return updated


class GraphTransformerEncoder(Encoder):
    """A stack of :class:`GraphTransformerLayer` over hashed texts and structure.

    Args:
        hidden_size: Width of the node features.
        num_layers: Layers, and thus hops that a message travels.
        num_heads: Attention heads; must divide ``hidden_size``.
        text_width: Buckets of the hashed node texts.
        walk_length: Steps of the random-walk positional encoding.
        max_nodes: Larger graphs are refused by the processor.

    Raises:
        ValueError: If the heads do not divide the width.
    """

    kind: ClassVar[str] = "graph"
    processor: GraphProcessor

    def __init__(
        self,
        hidden_size: int = 128,
        num_layers: int = 3,
        num_heads: int = 4,
        text_width: int = 1024,
        walk_length: int = 8,
        max_nodes: int = 256,
    ) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"{num_heads} heads do not divide a width of {hidden_size}")
        self.hidden_size = hidden_size
        self.processor = GraphProcessor(text_width, walk_length, max_nodes)
        self.text_projection = nn.Linear(text_width, hidden_size)
        nn.init.normal_(self.text_projection.weight, std=0.3)  # inputs have unit norm
        self.structure_projection = nn.Linear(self.processor.structure_width, hidden_size)
        self.edge_types = nn.Embedding(2, hidden_size)
        self.layers = nn.ModuleList(
            GraphTransformerLayer(hidden_size, num_heads, hidden_size) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)

    def collate(self, items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Join the graphs into one of unconnected parts: ``x``, ``structure`` (ΣN, ...), ``edge_index`` (2, ΣE)."""
        edges, offset = [], 0
        for item in items:
            edges.append(item["edge_index"] + offset)
            offset += item["x"].shape[0]
        return {
            "x": torch.cat([item["x"] for item in items]),
            "structure": torch.cat([item["structure"] for item in items]),
            "edge_index": torch.cat(edges, dim=1),
        }

    def forward(self, inputs: Mapping[str, Tensor], layout: Layout) -> Tensor:
        """Encode to (ΣN, d), one feature per node."""
        dtype = self.norm.weight.dtype
        hidden = self.text_projection(inputs["x"].to(dtype)) + self.structure_projection(inputs["structure"].to(dtype))
        assert hidden.shape[0] == layout.total, "the layout does not describe these graphs"
        forward = inputs["edge_index"]
        both = torch.cat([forward, forward.flip(0)], dim=1)
        types = torch.arange(2, device=both.device).repeat_interleave(forward.shape[1])
        edge_features = self.edge_types(types)
        for layer in self.layers:
            hidden = layer(hidden, both, edge_features)
        features: Tensor = self.norm(hidden)
        return features
