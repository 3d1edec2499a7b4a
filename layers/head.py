"""The contract of an expert head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from layers.calls import HeadContext, Result
from layers.layout import ItemLayout

HeadTarget = dict[str, Tensor]
Link = Literal["text", "boxes", "hidden", "queries"]
"""What crosses from the language model to a head: the prompt's text alone; text and boxes; the hidden state at the
anchor token (or before it); or the states of k learned queries."""
LINKS: tuple[Link, ...] = ("text", "boxes", "hidden", "queries")
TERMS = "terms"
"""Key of a target that says how many terms of the loss it brings, where that is not one."""


def num_terms(target: HeadTarget) -> int:
    """The terms of the loss that a target brings: none if it is empty, what it says, or one.

    A call that others are compared with, such as a passage beside its query, has a target and brings none.
    """
    if not target:
        return 0
    return int(target[TERMS]) if TERMS in target else 1


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
    """Turns a record's target into tensors in a data worker: picklable, without weights.

    It gets the layouts of the conversation's images, unless an attribute ``media_kind`` names another kind.
    One that needs to know what was asked has, besides, a method ``for_call(call) -> TargetProcessor``.
    """

    def __call__(self, value: Any, media: Sequence[ItemLayout]) -> HeadTarget:
        """Process one target.

        Args:
            value: The decoded target (:func:`data.media.decode_target`): a box in original pixels (list of 4 floats), a
                mask (H, W) bool tensor, a list of either with labels, an image (3, H, W) uint8 tensor, a label string,
                a number, indices (K,), or the mapping of a pair.
            media: Layouts of the conversation's images, or of its other media of one kind, up to the call (the last
                one is the call's).

        Raises:
            ValueError: If the target does not fit the media, naming both.
        """


class Head(nn.Module, ABC):
    """An expert head: hidden states and context in, typed results out.

    A head may keep state from call to call: an index of items, labelled examples, the memory of an episode. It gets
    that by :meth:`prime`, keeps it in :attr:`memory`, which no checkpoint holds, and forgets it by :meth:`reset`.

    Attributes:
        links: What may cross to it from the language model, see :class:`routers.tasks.TaskSpec`.
        draws_layouts: Whether a call in a conversation without an image may have regions: fractions of an empty canvas.
        gathers: Whether the loss compares the calls of all processes. Each of them then computes it for every pack,
            without calls if need be, since the others wait for its share.
        memory: Episode -> what is remembered of it, "" standing for all episodes that have nothing of their own.
        num_queries: Learned queries that the language model carries for this head (link type ``queries``).
        queries: (num_queries, d_llm) parameter, or None.
        target_processor: Turns targets of records into tensors.
        reads_originals: Whether it looks at images as they were before the encoder's processor; training then carries
            them in the batch.
        bases: Prefix of parameters -> where their first weights come from; a checkpoint stores what differs.

    Args:
        num_queries: k.
        state_size: d_llm, where there are queries.
    """

    links: frozenset[Link] = frozenset(LINKS)
    draws_layouts: ClassVar[bool] = False
    gathers: ClassVar[bool] = False
    num_queries: int = 0
    bases: Mapping[str, str] = MappingProxyType({})
    queries: nn.Parameter | None
    target_processor: TargetProcessor
    reads_originals: bool = False

    def __init__(self, num_queries: int = 0, state_size: int = 0) -> None:
        super().__init__()
        self.num_queries = num_queries
        queries = nn.Parameter(torch.randn(num_queries, state_size) * 0.02) if num_queries else None
        self.register_parameter("queries", queries)
        self.memory: dict[str, Any] = {}

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
        """Compare predictions with one target per call; the count is that of their terms (:func:`num_terms`)."""

    @abstractmethod
    def decode(self, predictions: Any, contexts: Sequence[HeadContext]) -> list[Result]:
        """Turn predictions into results in original units, one per call."""

    def prime(self, support: Any, episode: str = "") -> None:
        """Give the head what it answers from.

        Args:
            support: What a head of this class takes, such as an index, or labelled examples.
            episode: The episode that it is for (:attr:`layers.calls.HeadContext.episode`).

        Raises:
            ValueError: If the head keeps no state, or takes other support.
        """
        raise ValueError(f"{type(self).__name__} keeps no state: expected a head that can be primed")

    def recall(self, episode: str = "") -> Any:
        """What is remembered of an episode, else what all share, else None."""
        return self.memory.get(episode, self.memory.get(""))

    def reset(self, episode: str | None = None) -> None:
        """Forget an episode, or everything."""
        if episode is None:
            self.memory.clear()
        else:
            self.memory.pop(episode, None)

    def metrics(self) -> Mapping[str, Any]:
        """Fresh torchmetrics objects that a validation loop may update with results and targets."""
        return {}

    def zero_touch(self) -> Tensor:
        """A zero that depends on every trainable parameter, so that a rank without calls joins the all-reduce."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        if not parameters:
            return torch.zeros(())
        return torch.stack([(p.reshape(-1)[:1] * 0).sum() for p in parameters]).sum()
