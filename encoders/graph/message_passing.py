"""Graph encoders of torch_geometric: GCN, GraphSAGE, GIN, GATv2 and GPS over node texts and structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch_geometric.nn import GAT, GCN, GIN, GINEConv, GPSConv, GraphSAGE
from torch_geometric.utils import to_undirected

from encoders.graph.nodes import NodeEncoder
from layers.layout import Layout

Kind = Literal["gcn", "sage", "gin", "gatv2", "gps"]


class MessagePassingEncoder(NodeEncoder):
    """One of torch_geometric's networks; one feature per node.

    Messages run along every edge and against it, so that the target hears whoever points to it and whomever it points
    to; degrees tell the directions apart. Norms are per node, so that a graph alone is the same as among others.

    * ``gcn`` (https://arxiv.org/abs/1609.02907), ``sage`` (https://arxiv.org/abs/1706.02216), ``gin``
      (https://arxiv.org/abs/1810.00826), ``gatv2`` (https://arxiv.org/abs/2105.14491).
    * ``gps`` (https://arxiv.org/abs/2205.12454): GIN with an edge type per direction, beside attention over all nodes
      of the graph.

    Args:
        network: Which.
        hidden_size: Width of the node features.
        num_layers: Layers, and thus hops that a message travels.
        num_heads: Attention heads of ``gatv2`` and ``gps``; must divide ``hidden_size``.
        dropout: Probability, between layers.
        text_width: Buckets of the hashed node texts.
        walk_length: Steps of the random-walk positional encoding.
        max_nodes: Larger graphs are refused by the processor.
        num_eigenvectors: Of the Laplacian, as another positional encoding.
        sentence_encoder: A local directory of a text encoder that reads the nodes' texts in place of hashed words.

    Raises:
        ValueError: For a network of another name, or if the heads do not divide the width.
    """

    def __init__(
        self,
        network: Kind = "sage",
        hidden_size: int = 128,
        num_layers: int = 3,
        num_heads: int = 4,
        dropout: float = 0.0,
        text_width: int = 1024,
        walk_length: int = 8,
        max_nodes: int = 256,
        num_eigenvectors: int = 0,
        sentence_encoder: str | None = None,
    ) -> None:
        super().__init__(hidden_size, text_width, walk_length, max_nodes, num_eigenvectors, sentence_encoder)
        if hidden_size % num_heads:
            raise ValueError(f"{num_heads} heads do not divide a width of {hidden_size}")
        size: dict[str, Any] = {"in_channels": hidden_size, "hidden_channels": hidden_size, "num_layers": num_layers}
        size |= {"dropout": dropout, "norm": "layer_norm", "norm_kwargs": {"mode": "node"}}
        networks: dict[str, Callable[[], nn.Module]] = {
            "gcn": lambda: GCN(**size),
            "sage": lambda: GraphSAGE(**size),
            "gin": lambda: GIN(**size),
            "gatv2": lambda: GAT(**size, heads=num_heads, v2=True),
            "gps": lambda: _Gps(hidden_size, num_layers, num_heads, dropout),
        }
        if network not in networks:
            raise ValueError(f"network: expected one of {sorted(networks)}, got '{network}'")
        self.network = networks[network]()
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, inputs: Mapping[str, Tensor], layout: Layout) -> Tensor:
        """Encode to (ΣN, d), one feature per node."""
        hidden, edges = self.nodes(inputs, layout), inputs["edge_index"]
        if isinstance(self.network, _Gps):
            messages = self.network(hidden, edges, layout)
        else:
            messages = self.network(hidden, to_undirected(edges, num_nodes=hidden.shape[0]))
        features: Tensor = self.norm(hidden + messages)
        return features


class _Gps(nn.Module):
    """Layers of GPS."""

    def __init__(self, hidden_size: int, num_layers: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.edge_types = nn.Embedding(2, hidden_size)
        self.layers = nn.ModuleList(
            GPSConv(
                hidden_size,
                GINEConv(_perceptron(hidden_size)),
                heads=num_heads,
                dropout=dropout,
                norm="layer_norm",
                norm_kwargs={"mode": "node"},
            )
            for _ in range(num_layers)
        )

    def forward(self, hidden: Tensor, edges: Tensor, layout: Layout) -> Tensor:
        lengths = torch.tensor(layout.lengths, device=hidden.device)
        owner = torch.arange(len(lengths), device=hidden.device).repeat_interleave(lengths)
        both, directions = NodeEncoder.both_ways(edges)
        types = self.edge_types(directions)
        for layer in self.layers:
            hidden = layer(hidden, both, batch=owner, edge_attr=types)
        return hidden


def _perceptron(size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))
