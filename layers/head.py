"""The contract of an expert head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from layers.calls import HeadContext, Result
from layers.layout import ItemLayout

HeadTarget = dict[str, Tensor]


@dataclass
class LossTerm:
    """A loss as a sum and the count that normalises it, so that packs, ranks and accumulation add up exactly.

    Args:
        total: Scalar sum with gradient.
        count: What the sum is divided by after adding up the whole optimizer step; 0 contributes nothing.
        parts: Detached sums for the log, normalised by the same count.
    """

    total: Tensor
    count: int
    parts: dict[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: LossTerm) -> LossTerm:
        """Both together."""
        parts = dict(self.parts)
        for name, value in other.parts.items():
            parts[name] = parts[name] + value if name in parts else value
        return LossTerm(self.total + other.total, self.count + other.count, parts)


class TargetProcessor(Protocol):
    """Turns a record's target into tensors in a data worker: picklable, without weights."""

    def __call__(self, value: Any, media: Sequence[ItemLayout]) -> HeadTarget:
        """Process one target.

        Args:
            value: The decoded target: boxes in original pixels (list of 4 floats), a mask (H, W) bool tensor, an
                image (3, H, W) uint8 tensor, a label string, or a number.
            media: Layouts of the conversation's images up to the call (the last one is the call's image).

        Raises:
            ValueError: If the target does not fit the media, naming both.
        """


class Head(nn.Module, ABC):
    """An expert head: hidden states and context in, typed results out.

    Attributes:
        links: What may cross to it from the language model, see :class:`routers.tasks.TaskSpec`.
        draws_layouts: Whether a call in a conversation without an image may have regions: fractions of an empty canvas.
        num_queries: Learned queries that the language model carries for this head (link type ``queries``).
        queries: (num_queries, d_llm) parameter, or None.
        target_processor: Turns targets of records into tensors.
        bases: Prefix of parameters -> where their first weights come from; a checkpoint stores what differs.

    Args:
        num_queries: k.
        state_size: d_llm, where there are queries.
    """

    links: ClassVar[frozenset[str]] = frozenset({"text", "boxes", "hidden", "queries"})
    draws_layouts: ClassVar[bool] = False
    num_queries: int = 0
    bases: Mapping[str, str] = MappingProxyType({})
    queries: nn.Parameter | None
    target_processor: TargetProcessor

    def __init__(self, num_queries: int = 0, state_size: int = 0) -> None:
        super().__init__()
        self.num_queries = num_queries
        queries = nn.Parameter(torch.randn(num_queries, state_size) * 0.02) if num_queries else None
        self.register_parameter("queries", queries)

    @abstractmethod
    def forward(self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]) -> Any:
        """Predict for n calls.

        Args:
            states: (ΣK, d_llm) hidden states of all calls, or None for the links ``text`` and ``boxes``.
            lengths: K per call.
            contexts: One per call.
        """

    @abstractmethod
    def loss(self, predictions: Any, targets: Sequence[HeadTarget]) -> LossTerm:
        """Compare predictions with one target per call; the count is the number of calls."""

    @abstractmethod
    def decode(self, predictions: Any, contexts: Sequence[HeadContext]) -> list[Result]:
        """Turn predictions into results in original units, one per call."""

    def metrics(self) -> Mapping[str, Any]:
        """Fresh torchmetrics objects that a validation loop may update with results and targets."""
        return {}

    def zero_touch(self) -> Tensor:
        """A zero that depends on every trainable parameter, so that a rank without calls joins the all-reduce."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        if not parameters:
            return torch.zeros(())
        return torch.stack([(p.reshape(-1)[:1] * 0).sum() for p in parameters]).sum()
