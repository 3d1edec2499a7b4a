"""Reading with any language model: rows padded at the left, transformers' modules and its growing cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.past import Past, join_pasts
from inference.reading.reader import Reader, Reading, RowConditions


class Steppable(Protocol):
    """The part of a Generalist that is needed."""

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embeddings of (B, S) token ids, query tokens included."""

    def step(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any, conditions: Any = None
    ) -> Any:
        """One cached forward: an object with ``logits_last`` (B, V), ``hidden_states`` (B, S, d) and ``cache``."""


class GenericReader(Reader):
    """Reads with a model's own cached forward.

    Args:
        model: Gives embeddings and cached steps.
    """

    loop = "generic"

    def __init__(self, model: Steppable) -> None:
        self.model = model

    def read(
        self,
        prompts: Sequence[Tensor],
        pasts: Sequence[Past | None],
        conditions: RowConditions | None = None,
        room: int = 0,
    ) -> GenericReading:
        """See :meth:`inference.reading.reader.Reader.read`."""
        return GenericReading(self.model, prompts, pasts, conditions, room)

    def read_pasts(self, prompts: Sequence[Tensor], conditions: RowConditions | None = None) -> list[Past]:
        """See :meth:`inference.reading.reader.Reader.read_pasts`."""
        reading = self.read(prompts, [None] * len(prompts), conditions)
        return [reading.past(place) for place in range(len(prompts))]


class GenericReading(Reading):
    """A padded batch and its cache; see :meth:`inference.reading.reader.Reader.read` for the arguments."""

    keeps_in_place = False

    def __init__(
        self,
        model: Steppable,
        prompts: Sequence[Tensor],
        pasts: Sequence[Past | None],
        conditions: RowConditions | None,
        room: int,
    ) -> None:
        self._model, self._conditions = model, conditions
        embeds, self._mask, positions = left_pad(prompts, room)
        cache = None
        if any(past is not None for past in pasts):
            cache, before = join_pasts(pasts)
            positions = positions + before.sum(1, keepdim=True)
            self._mask = torch.cat([before, self._mask], dim=1)
        self._width = self._mask.shape[1] - room
        self._output = model.step(embeds, self._mask[:, : self._width], positions, cache, conditions)
        self._next = positions[:, -1:] + 1

    @property
    def logits(self) -> Tensor:
        """(B, V) of the tokens that come next."""
        logits: Tensor = self._output.logits_last
        return logits

    @property
    def states(self) -> Tensor:
        """(B, d) at the last tokens."""
        states: Tensor = self._output.hidden_states[:, -1]
        return states

    def append(self, token_ids: Sequence[int]) -> None:
        """Read one more token of every row."""
        fed = torch.tensor(token_ids, device=self._mask.device)
        self._conditions = None if self._conditions is None else self._conditions.following(fed)
        self._width += 1
        mask, embeds = self._mask[:, : self._width], self._model.embed(fed[:, None])
        self._output = self._model.step(embeds, mask, self._next, self._output.cache, self._conditions)
        self._next = self._next + 1

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these rows in this order; the next token has to follow before logits are read again."""
        index = torch.tensor(places, device=self._mask.device)
        self._output.cache.batch_select_indices(index)
        self._mask, self._next = self._mask[index], self._next[index]
        self._conditions = None if self._conditions is None else self._conditions.rows(index)

    def past(self, place: int) -> Past:
        """A copy of what was read of a row."""
        return Past.of(self._output.cache, place, self._mask[place, : self._width].bool())


def left_pad(prompts: Sequence[Tensor], room: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Batch prompts of different lengths so that all end at the last column.

    Args:
        prompts: (L, d) embeddings each.
        room: Columns of ones that the mask carries for tokens to come.

    Returns:
        ``inputs_embeds`` (B, S, d), ``attention_mask`` (B, S + room) with 0 on padding, and ``position_ids`` (B, S)
        that count from 0 at each prompt's first token.
    """
    width = max(prompt.shape[0] for prompt in prompts)
    device = prompts[0].device
    padding = torch.tensor([width - prompt.shape[0] for prompt in prompts], device=device)[:, None]
    inputs_embeds = torch.stack([F.pad(prompt, (0, 0, width - prompt.shape[0], 0)) for prompt in prompts])
    columns = torch.arange(width + room, device=device)[None]
    return inputs_embeds, (columns >= padding).long(), (columns[:, :width] - padding).clamp(min=0)
