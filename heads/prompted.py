"""Heads that read a call's words and boxes instead of hidden states: the links ``text`` and ``boxes`` for any head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from heads.links import LinkReader
from layers.calls import HeadContext, Result
from layers.head import Head, HeadTarget, LossTerm


class PromptedHead(Head):
    """Gives a head that reads hidden states the call's own words and boxes in their place.

    For heads that know no other link; those of :class:`heads.links.LinkedHead` take ``link`` themselves. Nothing but
    text crosses from the language model, so that the head's loss does not train it.

    Args:
        head: The head.
        state_size: Width of the states that it reads.
        width: Inner width of the reader, a multiple of 4.
    """

    links = frozenset({"text", "boxes"})

    def __init__(self, head: Head, state_size: int, width: int = 64) -> None:
        super().__init__()
        if head.num_queries:
            raise ValueError(f"head: expected one without queries, which nothing could place, got {head.num_queries}")
        self.head = head
        self.reader = LinkReader("boxes", state_size, width=width)
        self.target_processor = head.target_processor

    def forward(self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]) -> Any:
        """The head's predictions.

        Raises:
            ValueError: If there are states: the task's link is not one of this head's; or a region is not one.
        """
        if states is not None:
            raise ValueError("PromptedHead reads words: expected a task of link 'text' or 'boxes', got states")
        read, num_read = self.reader(None, lengths, contexts, type(self).__name__)
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
