"""What graph encoders share: nodes from texts and structure, and the batch as one graph of unconnected parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from encoders.graph.processor import GraphProcessor
from encoders.graph.sentences import SentenceEncoder
from layers.encoder import Encoder
from layers.layout import Layout


class NodeEncoder(Encoder):
    """Nodes as the sum of what their texts and their place in the graph say; subclasses pass messages.

    Args:
        hidden_size: Width of the node features.
        text_width: Buckets of the hashed node texts.
        walk_length: Steps of the random-walk positional encoding.
        max_nodes: Larger graphs are refused by the processor.
        num_eigenvectors: Of the Laplacian, as another positional encoding; signs change at random in training.
        sentence_encoder: A local directory of a text encoder that reads the nodes' texts in place of hashed words.
    """

    kind: ClassVar[str] = "graph"
    processor: GraphProcessor

    def __init__(
        self,
        hidden_size: int,
        text_width: int,
        walk_length: int,
        max_nodes: int,
        num_eigenvectors: int,
        sentence_encoder: str | None,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.processor = GraphProcessor(text_width, walk_length, max_nodes, num_eigenvectors, sentence_encoder)
        self.sentences = None if sentence_encoder is None else SentenceEncoder(sentence_encoder)
        self.bases = {} if sentence_encoder is None else {"sentences.model.": sentence_encoder}
        self.text_projection = nn.Linear(text_width if self.sentences is None else self.sentences.width, hidden_size)
        if self.sentences is None:
            nn.init.normal_(self.text_projection.weight, std=0.3)  # inputs have unit norm
        self.structure_projection = nn.Linear(self.processor.structure_width, hidden_size)

    def collate(self, items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Join the graphs into one of unconnected parts: what nodes have is (ΣN, ...), ``edge_index`` (2, ΣE)."""
        edges, offset = [], 0
        for item in items:
            edges.append(item["edge_index"] + offset)
            offset += item["structure"].shape[0]
        joined = {name: torch.cat([item[name] for item in items]) for name in ("x", "shown", "structure")}
        joined["edge_index"] = torch.cat(edges, dim=1)
        if self.sentences is None:
            return joined
        longest = max(item["token_ids"].shape[1] for item in items)
        ids = [nn.functional.pad(item["token_ids"], (0, longest - item["token_ids"].shape[1])) for item in items]
        lengths = torch.cat([item["token_lengths"] for item in items])
        return joined | {"token_ids": torch.cat(ids), "token_lengths": lengths}

    def nodes(self, inputs: Mapping[str, Tensor], layout: Layout) -> Tensor:
        """(ΣN, d) nodes before any message."""
        dtype = self.text_projection.weight.dtype
        structure = inputs["structure"]
        assert structure.shape[0] == layout.total, "the layout does not describe these graphs"
        if self.sentences is None:
            texts = inputs["x"]
        else:
            texts = self.sentences(inputs["token_ids"], inputs["token_lengths"])
        texts = texts * inputs["shown"]  # an objective hides some nodes' texts
        structure = self._with_random_signs(structure, layout) if self.training else structure
        projected: Tensor = self.text_projection(texts.to(dtype)) + self.structure_projection(structure.to(dtype))
        return projected

    @staticmethod
    def both_ways(edges: Tensor) -> tuple[Tensor, Tensor]:
        """Edges (2, E) and, after them, the same backwards: (2, 2E), and 0 or 1 for their direction (2E,)."""
        directions = torch.arange(2, device=edges.device).repeat_interleave(edges.shape[1])
        return torch.cat([edges, edges.flip(0)], dim=1), directions

    def _with_random_signs(self, structure: Tensor, layout: Layout) -> Tensor:
        count = self.processor.num_eigenvectors
        if not count:
            return structure
        signs = torch.randint(0, 2, (len(layout.lengths), count), device=structure.device) * 2 - 1
        lengths = torch.tensor(layout.lengths, device=structure.device)
        rest, vectors = structure[:, :-count], structure[:, -count:]
        return torch.cat([rest, vectors * signs.repeat_interleave(lengths, dim=0)], dim=1)
