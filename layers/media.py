"""Decoded media that are more than one tensor."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Audio:
    """A mono waveform (samples,), float in [-1, 1], and its sample rate in hertz."""

    waveform: Tensor
    sample_rate: int


@dataclass(frozen=True)
class Graph:
    """A directed graph with a text per node; node 0 is the target of a sampled subgraph.

    Args:
        node_texts: One string per node.
        edge_index: (2, E) int64; messages flow from row 0 to row 1.
        node_features: (nodes, width) float32, where nodes have numbers beside their texts, or instead of them.
    """

    node_texts: tuple[str, ...]
    edge_index: Tensor
    node_features: Tensor | None = None

    @property
    def num_nodes(self) -> int:
        """The number of nodes."""
        return len(self.node_texts)
