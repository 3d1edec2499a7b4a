"""Routers: what a reply's tokens or hidden states ask of the expert heads."""

from __future__ import annotations

from abc import ABC
from collections.abc import Collection, Sequence

from torch import Tensor, nn

from layers.head import LossTerm
from routers.parser import CallParser, Parsed
from routers.vocabulary import Vocabulary

ROUTER_LOSS = "router"


class Router(nn.Module, ABC):
    """Turns one generated reply into ordered calls: while it is written, and afterwards.

    Args:
        vocabulary: The control tokens; a Generalist binds its own.
    """

    loss_weight = 1.0

    def __init__(self, vocabulary: Vocabulary | None = None) -> None:
        super().__init__()
        self._vocabulary = vocabulary

    @property
    def vocabulary(self) -> Vocabulary:
        """The control tokens.

        Raises:
            ValueError: If it has none yet.
        """
        if self._vocabulary is None:
            raise ValueError(
                f"{type(self).__name__}: expected a vocabulary, from its constructor or from bind, got none"
            )
        return self._vocabulary

    def bind(self, vocabulary: Vocabulary) -> None:
        """Take the control tokens of the model that it routes for."""
        self._vocabulary = vocabulary

    @property
    def learns(self) -> bool:
        """Whether it has a loss, see :meth:`loss`."""
        return False

    @property
    def steers(self) -> bool:
        """Whether :meth:`steer` has a say in which call begins where."""
        return False

    def steer(self, logits: Tensor, states: Tensor, standing: Sequence[Collection[str] | None]) -> Tensor:
        """Decide, before a token is chosen, whether a call begins with it.

        Args:
            logits: (B, V) of the next token.
            states: (B, d) the hidden states that predict it.
            standing: Per reply the tasks that may begin here; None within a call and after the end of the turn.

        Returns:
            (B, V) logits; as they are where the language model's own task tokens decide.
        """
        return logits

    def loss(self, states: Tensor, token_ids: Tensor, available: Sequence[Collection[str]]) -> LossTerm:
        """What it learns from the places of a pack where a call could begin; the count is their number.

        Args:
            states: (n, d) the hidden states before those places.
            token_ids: (n,) what stands there.
            available: Per place the tasks that could begin there.
        """
        return LossTerm(states.sum() * 0, len(states))

    def parser(self, available: Collection[str] | None = None) -> CallParser:
        """A parser of one reply, fed as the reply is written.

        Args:
            available: Tasks that the sample can have (:meth:`routers.tasks.TaskTable.available`); all if None.
        """
        return CallParser(self.vocabulary, available)

    def route(self, token_ids: Sequence[int], available: Collection[str] | None = None) -> Parsed:
        """Route a reply that is written.

        Args:
            token_ids: The reply's token ids.
            available: As for :meth:`parser`.

        Returns:
            Calls of available tasks only; a call of another one is an error of kind "unavailable".
        """
        parser = self.parser(available)
        for token_id in token_ids:
            parser.feed(token_id)
        return parser.finish()


class MarkerRouter(Router):
    """Routes by the task tokens that the language model wrote; it has no parameters."""
