"""Routers: what a reply's tokens or hidden states ask of the expert heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

from torch import Tensor, nn

from routers.parser import Parsed, parse
from routers.vocabulary import Vocabulary


class Router(nn.Module, ABC):
    """Turns one generated reply into ordered calls."""

    @abstractmethod
    def route(
        self,
        token_ids: Sequence[int],
        hidden_states: Tensor | None = None,
        available: Collection[str] | None = None,
    ) -> Parsed:
        """Route a reply.

        Args:
            token_ids: The reply's token ids.
            hidden_states: (len(token_ids), d), the state at each token, for routers that read it.
            available: Tasks that the sample can have (:meth:`routers.tasks.TaskTable.available`); all if None.

        Returns:
            Calls of available tasks only; a call of another one is an error of kind "unavailable".
        """


class MarkerRouter(Router):
    """Routes by the task tokens that the language model wrote; it has no parameters.

    Args:
        vocabulary: The control tokens.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def route(
        self,
        token_ids: Sequence[int],
        hidden_states: Tensor | None = None,
        available: Collection[str] | None = None,
    ) -> Parsed:
        """Parse the reply; the hidden states are not read."""
        return parse(token_ids, self.vocabulary, available)
