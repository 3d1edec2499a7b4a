"""From a graph of texts to numbers: hashed or tokenised words, positional encodings, degrees, the target's flag."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import AddRandomWalkPE
from torch_geometric.utils import coalesce, degree, get_laplacian, to_dense_adj, to_undirected
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from layers.layout import ItemLayout
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
    """Turns a graph into its nodes' ``x``, ``structure`` and ``shown`` (1: the text counts), and ``edge_index``.

    Args:
        text_width: Buckets of the hashed node texts.
        walk_length: Steps of the random-walk positional encoding on the undirected graph.
        max_nodes: Larger graphs are refused.
        num_eigenvectors: Eigenvectors of the normalised Laplacian as another positional encoding, those of the smallest
            eigenvalues but for the first; zeros where a graph has fewer.
        tokenizer: Directory of a sentence encoder's tokenizer; nodes then also have ``token_ids``, 0 beyond their
            ``token_lengths``.
        max_text_tokens: Of a node's text; a longer one is refused.
    """

    text_width: int = 1024
    walk_length: int = 8
    max_nodes: int = 256
    num_eigenvectors: int = 0
    tokenizer: str | None = None
    max_text_tokens: int = 128
    kind: str = field(default="graph", init=False)

    @property
    def structure_width(self) -> int:
        """Random-walk return probabilities, logarithmic in- and out-degree, the target flag, and eigenvectors."""
        return self.walk_length + DEGREE_FEATURES + TARGET_FEATURES + self.num_eigenvectors

    def layout(self, size: Sequence[int]) -> ItemLayout:
        """The features of a graph of ``size`` (nodes,): one per node.

        Raises:
            ValueError: If the graph is empty or larger than ``max_nodes``.
        """
        return graph_layout(size, self.max_nodes)

    def __call__(self, raw: Any) -> tuple[dict[str, Tensor], ItemLayout]:
        """Featurise a :class:`layers.media.Graph`.

        Raises:
            ValueError: If it is empty or too large, or an edge names a node that it does not have.
        """
        edges = checked_edges(raw)
        layout, nodes = self.layout((raw.num_nodes,)), raw.num_nodes
        edges = coalesce(edges, num_nodes=nodes)
        inputs = {"shown": torch.ones(nodes, 1), "structure": self._structure(edges, nodes), "edge_index": edges}
        return inputs | self._texts(raw.node_texts), layout

    def fingerprint(self) -> Mapping[str, Any]:
        """Every field, JSON-serialisable."""
        return {"processor": type(self).__name__, **asdict(self)}

    def __getstate__(self) -> dict[str, Any]:
        return asdict(self)  # without the loaded tokenizer, which every worker reads for itself

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        assert self.tokenizer is not None
        return AutoTokenizer.from_pretrained(self.tokenizer, trust_remote_code=False)

    def _texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        hashed = {"x": torch.stack([hash_text(text, self.text_width) for text in texts])}
        return hashed if self.tokenizer is None else hashed | self._tokens(texts)

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        rows = self._tokenizer(list(texts), add_special_tokens=True)["input_ids"]
        lengths = [len(row) for row in rows]
        longest, limit = max(lengths), self.max_text_tokens
        if not 0 < min(lengths) <= longest <= limit:
            wrong = next(node for node, length in enumerate(lengths) if not 0 < length <= limit)
            raise ValueError(f"expected node texts of 1 to {limit} tokens, got {lengths[wrong]} in node {wrong}")
        padded = torch.zeros(len(rows), longest, dtype=torch.int64)
        for target, row in zip(padded, rows, strict=True):
            target[: len(row)] = torch.tensor(row, dtype=torch.int64)
        return {"token_ids": padded, "token_lengths": torch.tensor(lengths)}

    def _structure(self, edges: Tensor, nodes: int) -> Tensor:
        """(nodes, structure_width)."""
        undirected = to_undirected(edges, num_nodes=nodes)
        data = Data(edge_index=undirected, num_nodes=nodes)
        walks = AddRandomWalkPE(self.walk_length, attr_name="walks")(data).walks
        degrees = torch.stack([degree(edges[row], nodes).log1p() for row in (1, 0)], dim=1)
        target = torch.zeros(nodes, TARGET_FEATURES)
        target[0] = 1.0
        parts = [walks.reshape(nodes, self.walk_length), degrees, target]
        if self.num_eigenvectors:
            parts.append(laplacian_eigenvectors(undirected, nodes, self.num_eigenvectors))
        return torch.cat(parts, dim=1)


def graph_layout(size: Sequence[int], max_nodes: int) -> ItemLayout:
    """The features of a graph of ``size`` (nodes,): one per node.

    Raises:
        ValueError: If the graph is empty or larger than ``max_nodes``.
    """
    if len(size) != 1 or not 1 <= size[0] <= max_nodes:
        raise ValueError(f"expected a graph of 1 to {max_nodes} nodes, got size {tuple(size)}")
    return ItemLayout(grid=(size[0],), original_size=(size[0],))


def checked_edges(raw: Any) -> Tensor:
    """The edges (2, E) of a graph.

    Raises:
        ValueError: If it is no :class:`layers.media.Graph`, or an edge names a node that it does not have.
    """
    if not isinstance(raw, Graph):
        raise ValueError(f"expected layers.media.Graph, got {type(raw).__name__}")
    edges, nodes = raw.edge_index, raw.num_nodes
    if edges.dim() != 2 or edges.shape[0] != 2 or edges.dtype != torch.int64:
        raise ValueError(f"expected edge_index (2, E) of int64, got {tuple(edges.shape)} {edges.dtype}")
    if edges.numel() and (int(edges.min()) < 0 or int(edges.max()) >= nodes):
        raise ValueError(f"expected edges between nodes 0 to {nodes - 1}, got node {_outside(edges, nodes)}")
    return edges


def laplacian_eigenvectors(undirected: Tensor, nodes: int, count: int) -> Tensor:
    """(nodes, count) eigenvectors of the normalised Laplacian, by eigenvalue from the second on; zeros where it ends.

    The sign of an eigenvector means nothing: here the entry of largest magnitude is positive, and encoders change
    signs at random in training (https://arxiv.org/abs/2003.00982). torch_geometric's transform needs more nodes than
    eigenvectors, and draws signs where it computes them.
    """
    edges, weights = get_laplacian(undirected, normalization="sym", num_nodes=nodes)
    laplacian = to_dense_adj(edges, edge_attr=weights, max_num_nodes=nodes)[0].double()
    vectors = torch.linalg.eigh(laplacian).eigenvectors[:, 1 : count + 1]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * largest.sign()
    return torch.nn.functional.pad(vectors, (0, count - vectors.shape[1])).float()


def _outside(edges: Tensor, nodes: int) -> int:
    wrong = edges[(edges < 0) | (edges >= nodes)]
    return int(wrong[0])
