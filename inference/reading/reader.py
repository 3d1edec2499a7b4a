"""The contract between the decode loop and whatever reads: batches of rows that grow by a token at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from inference.past import Past

Loop = Literal["fused", "generic"]


class RowConditions(Protocol):
    """What conditions each row's steps, such as :class:`models.conditions.Conditions`."""

    def rows(self, index: Tensor) -> RowConditions:
        """Those of the rows that stay in the batch."""

    def following(self, token_ids: Tensor) -> RowConditions:
        """Those of the step of one more token per row, (B,)."""


class Reading(ABC):
    """A batch of rows, read up to the last token of each."""

    keeps_in_place: ClassVar[bool]
    """Whether :meth:`keep` costs no more than the rows that change their places."""

    @property
    @abstractmethod
    def logits(self) -> Tensor:
        """(B, V) of the tokens that come next."""

    @property
    @abstractmethod
    def states(self) -> Tensor:
        """(B, d) at the last tokens, after the final norm."""

    @abstractmethod
    def append(self, token_ids: Sequence[int]) -> None:
        """Read one more token of every row."""

    @abstractmethod
    def keep(self, places: Sequence[int]) -> None:
        """Go on with these rows in this order; a row may be taken several times."""

    @abstractmethod
    def past(self, place: int) -> Past:
        """A copy of what was read of a row."""


class Reader(ABC):
    """Reads prompts with a model."""

    loop: ClassVar[Loop]

    @abstractmethod
    def read(
        self,
        prompts: Sequence[Tensor],
        pasts: Sequence[Past | None],
        conditions: RowConditions | None = None,
        room: int = 0,
    ) -> Reading:
        """Read a batch of prompts.

        Args:
            prompts: (L, d) embeddings that are still to be read, at least one each.
            pasts: What was read before them.
            conditions: Of the prompts' positions.
            room: Tokens to come.
        """

    @abstractmethod
    def read_pasts(self, prompts: Sequence[Tensor], conditions: RowConditions | None = None) -> list[Past]:
        """What follows the reading of (L, d) embeddings of rows that nothing was read of."""
