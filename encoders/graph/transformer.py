"""A graph transformer on torch_geometric: messages in both directions over node texts and structure.

Follows the graph encoder of GraphGPT (https://arxiv.org/abs/2310.13023): one feature per node, one token per node.
Departures: attention is scaled, messages arrive at ``edge_index[1]`` and, with an edge type of their own, run
backwards too; nodes carry random-walk positional encodings, degrees and a flag of the target; layers have an FFN.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

from encoders.graph.nodes import NodeEncoder
from layers.layout import Layout


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


class GraphTransformerEncoder(NodeEncoder):
    """A stack of :class:`GraphTransformerLayer` over texts and structure.

    Args:
        hidden_size: Width of the node features.
        num_layers: Layers, and thus hops that a message travels.
        num_heads: Attention heads; must divide ``hidden_size``.
        text_width: Buckets of the hashed node texts.
        walk_length: Steps of the random-walk positional encoding.
        max_nodes: Larger graphs are refused by the processor.
        num_eigenvectors: Of the Laplacian, as another positional encoding.
        sentence_encoder: A local directory of a text encoder that reads the nodes' texts in place of hashed words.

    Raises:
        ValueError: If the heads do not divide the width.
    """

    def __init__(
        self,
        hidden_size: int = 128,
        num_layers: int = 3,
        num_heads: int = 4,
        text_width: int = 1024,
        walk_length: int = 8,
        max_nodes: int = 256,
        num_eigenvectors: int = 0,
        sentence_encoder: str | None = None,
    ) -> None:
        super().__init__(hidden_size, text_width, walk_length, max_nodes, num_eigenvectors, sentence_encoder)
        if hidden_size % num_heads:
            raise ValueError(f"{num_heads} heads do not divide a width of {hidden_size}")
        self.edge_types = nn.Embedding(2, hidden_size)
        self.layers = nn.ModuleList(
            GraphTransformerLayer(hidden_size, num_heads, hidden_size) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, inputs: Mapping[str, Tensor], layout: Layout) -> Tensor:
        """Encode to (ΣN, d), one feature per node."""
        hidden = self.nodes(inputs, layout)
        both, directions = self.both_ways(inputs["edge_index"])
        edge_features = self.edge_types(directions)
        for layer in self.layers:
            hidden = layer(hidden, both, edge_features)
        features: Tensor = self.norm(hidden)
        return features
