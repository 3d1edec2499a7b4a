"""A head whose answers come from a frozen expert."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from heads.attend import group_indices
from heads.experts.pool import Expert, ExpertPool
from layers.calls import HeadContext, Result
from layers.head import Head, HeadTarget, Link, LossTerm
from layers.layout import ItemLayout

T = TypeVar("T")


class NothingToLearn:
    """The target processor of a head that has no parameters."""

    def __call__(self, value: Any, media: Sequence[ItemLayout]) -> HeadTarget:
        """No tensors, whatever the target."""
        return {}


@dataclass(frozen=True)
class Request:
    """What an expert is asked on behalf of one call.

    Args:
        context: The call.
        prompt: What it says.
        seed: Of the noise.
        shared: Arguments that requests of one batch must have in common.
        own: Tensors and values of this request alone.
        notes: What to tell about the answer.
    """

    context: HeadContext
    prompt: str
    seed: int
    shared: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def noting(self, *notes: str) -> Request:
        """The same request with more to tell."""
        return replace(self, notes=(*self.notes, *notes))


class SharesExperts(nn.Module):
    """What makes a head ask the experts of a pool; it stands before :class:`layers.head.Head` among its bases.

    Args:
        experts: The pool; by default one that its model's heads share.
        num_queries: Learned queries in the language model.
        state_size: Width of its states, where there are queries.
    """

    def __init__(self, experts: ExpertPool | None = None, num_queries: int = 0, state_size: int = 0) -> None:
        super().__init__(num_queries, state_size)
        self._experts = experts
        # Follows the head from device to device, as its parameters do where it has any.
        self.register_buffer("place", torch.empty(0), persistent=False)

    @property
    def experts(self) -> ExpertPool:
        """The pool."""
        if self._experts is None:
            self._experts = ExpertPool()
        return self._experts

    @experts.setter
    def experts(self, pool: ExpertPool) -> None:
        self._experts = pool

    @property
    def has_experts(self) -> bool:
        """Whether it was given a pool."""
        return self._experts is not None

    @property
    def device(self) -> torch.device:
        """Where this head is."""
        place = self.place
        assert isinstance(place, Tensor)
        return place.device


def share_experts(heads: Iterable[nn.Module], experts: ExpertPool | None = None, replace_own: bool = False) -> None:
    """Have heads, and the heads within them, ask the experts of one pool; what asks none is left alone.

    Args:
        heads: The heads.
        experts: The pool; a new one by default.
        replace_own: Whether heads that were given a pool ask this one instead.
    """
    pool = experts if experts is not None else ExpertPool()
    for part in (part for head in heads for part in head.modules()):
        if isinstance(part, SharesExperts) and (replace_own or not part.has_experts):
            part.experts = pool


class ExpertHead(SharesExperts, Head):
    """A frozen expert behind the contract of heads: it reads a call's prompt and groundings, and learns nothing.

    Args:
        expert: What answers.
        experts: The pool that loads it.
        batch_size: Calls that the expert answers at once.
    """

    links: frozenset[Link] = frozenset({"text", "boxes"})

    def __init__(self, expert: Expert, experts: ExpertPool | None = None, batch_size: int = 4) -> None:
        super().__init__(experts)
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.expert, self.batch_size = expert, batch_size
        self.target_processor = NothingToLearn()

    @abstractmethod
    def request(self, context: HeadContext) -> Request:
        """What the expert is asked for a call.

        Raises:
            ValueError: If the call lacks what the expert needs.
        """

    @abstractmethod
    def answer(self, expert: Any, requests: Sequence[Request]) -> list[Result]:
        """Ask the expert; all requests have the same ``shared`` arguments."""

    def batch_key(self, expert: Any, request: Request) -> Any:
        """Requests with equal keys can be answered at once."""
        return tuple(sorted(request.shared.items()))

    def forward(self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]) -> list[Request]:
        """One request per call, see :meth:`layers.head.Head.forward`.

        Raises:
            ValueError: If there are states, or a call lacks what the expert needs.
        """
        if states is not None and states.shape[0]:
            name = type(self).__name__
            raise ValueError(f"{name} reads no states: give its task link 'text' or 'boxes', not 'hidden' or 'queries'")
        return [self.request(context) for context in contexts]

    def loss(self, predictions: list[Request], targets: Sequence[HeadTarget]) -> LossTerm:
        """Nothing: the expert is frozen."""
        return LossTerm(self.zero_touch(), 0)

    @torch.no_grad()
    def decode(self, predictions: list[Request], contexts: Sequence[HeadContext]) -> list[Result]:
        """The expert's answers, one per call, whatever is asked beside it."""
        if not predictions:
            return []
        return self._ask(self.expert, lambda expert: self._answer_all(expert, predictions))

    def _answer_all(self, expert: Any, requests: Sequence[Request]) -> list[Result]:
        results: dict[int, Result] = {}
        for group in group_indices([self.batch_key(expert, request) for request in requests]):
            for start in range(0, len(group), self.batch_size):
                batch = group[start : start + self.batch_size]
                answers = self.answer(expert, [requests[i] for i in batch])
                results.update(zip(batch, answers, strict=True))
        return [results[i] for i in range(len(requests))]

    def _ask(self, expert: Expert, question: Callable[[Any], T]) -> T:
        return self.experts.ask(expert, self.device, question)
