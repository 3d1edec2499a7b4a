"""Heads that read a call's words and boxes instead of hidden states: the links ``text`` and ``boxes`` for any head."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heads.attend import pad_ragged
from layers.calls import Call, HeadContext, Result
from layers.head import Head, HeadTarget, LossTerm

_WORD = re.compile(r"\w+|[^\w\s]")
_WAVES = 8


class CallReader(nn.Module):
    """A call's words and boxes as vectors: hashed word embeddings and boxes in a small transformer.

    Words are hashed to rows, so that no vocabulary is needed; the last vector of a call stands for the whole of it, as
    an anchor's state does.

    Args:
        output_size: Width of the vectors.
        width: Inner width, a multiple of ``num_heads``.
        num_layers: Transformer layers.
        num_heads: Attention heads.
        num_rows: Rows that words are hashed to.
    """

    def __init__(
        self, output_size: int, width: int = 64, num_layers: int = 1, num_heads: int = 4, num_rows: int = 4096
    ) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.words = nn.Embedding(num_rows, width)
        self.boxes = nn.Linear(4 * 2 * _WAVES, width)
        layer = nn.TransformerEncoderLayer(
            width, num_heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.output = nn.Linear(width, output_size)

    def forward(self, calls: Sequence[Call]) -> tuple[Tensor, list[int]]:
        """(ΣK, output_size) vectors and K per call: one per word and box, and one for the whole."""
        if not calls:
            return self.output.weight.new_zeros(0, self.output.out_features), []
        rows = [self._embed(call) for call in calls]
        padded, mask = pad_ragged(rows)
        read = self.output(self.layers(padded, src_key_padding_mask=None if mask is None else ~mask))
        lengths = [len(row) for row in rows]
        return torch.cat([row[:length] for row, length in zip(read, lengths, strict=True)]), lengths

    def _embed(self, call: Call) -> Tensor:
        """(K, width): words with their places, then boxes, then the task."""
        weight = self.words.weight
        words = [*_WORD.findall(call.prompt.lower()), f"<{call.task}>"]
        ids = torch.tensor([zlib.crc32(word.encode()) % self.num_rows for word in words], device=weight.device)
        places = torch.arange(len(words), device=weight.device)[:, None]
        embedded = self.words(ids) + _waves(places / 64.0, weight.shape[1]).to(weight.dtype)
        if not call.boxes_xyxy:
            return embedded
        corners = torch.tensor(call.boxes_xyxy, device=weight.device, dtype=torch.float32).reshape(-1, 4, 1)
        boxes = self.boxes(_waves(corners, 2 * _WAVES).flatten(1).to(weight.dtype))
        return torch.cat([embedded[:-1], boxes, embedded[-1:]])


class PromptedHead(Head):
    """Gives a head that reads hidden states the call's own words and boxes in their place.

    Nothing but text crosses from the language model, so that the head's loss does not train it: the links ``text`` and
    ``boxes``, on the same head that takes ``hidden`` and ``queries``.

    Args:
        head: The head.
        state_size: Width of the states that it reads.
        width: Width of the reader.
        num_layers: Layers of the reader.
        num_rows: Rows that the reader hashes words to.
    """

    links = frozenset({"text", "boxes"})

    def __init__(self, head: Head, state_size: int, width: int = 64, num_layers: int = 1, num_rows: int = 4096) -> None:
        super().__init__()
        if head.num_queries:
            raise ValueError(f"head: expected one without queries, which nothing could place, got {head.num_queries}")
        self.head = head
        self.reader = CallReader(state_size, width, num_layers, num_rows=num_rows)
        self.target_processor = head.target_processor

    def forward(self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]) -> Any:
        """The head's predictions.

        Raises:
            ValueError: If there are states: the task's link is not one of this head's.
        """
        if states is not None:
            raise ValueError("PromptedHead reads words: expected a task of link 'text' or 'boxes', got states")
        read, num_read = self.reader([context.call for context in contexts])
        return self.head(read, num_read, contexts)

    def loss(self, predictions: Any, targets: Sequence[HeadTarget]) -> LossTerm:
        """The head's loss."""
        return self.head.loss(predictions, targets)

    def decode(self, predictions: Any, contexts: Sequence[HeadContext]) -> list[Result]:
        """The head's results."""
        return self.head.decode(predictions, contexts)

    def metrics(self) -> Mapping[str, Any]:
        """The head's metrics."""
        return self.head.metrics()


def _waves(values: Tensor, size: int) -> Tensor:
    """Sine-cosine encoding of numbers (..., 1) from 0 to about 1 in (..., size) channels."""
    frequencies = torch.pi * torch.logspace(0, 5, size // 2, base=2.0, device=values.device)
    angles = values.float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
