"""The decode loop: tokens are chosen, forced and told as they come; what reads them is a reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from inference.choosing import Chooser, DecodingOptions
from inference.past import Past
from inference.reading.reader import Reader, RowConditions

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Decoded:
    """What one sequence generated.

    Args:
        token_ids: The new tokens without the one that ended the turn.
        hidden_states: (len(token_ids), d), the state *at* each new token.
        finish_reason: "stop" if the model ended its turn, "length" if it was cut.
        log_probability: Of the tokens that the model chose, the one that ended the turn included and forced ones not,
            at temperature 1 among the tokens that it was permitted; None unless asked for.
    """

    token_ids: list[int]
    hidden_states: Tensor
    finish_reason: FinishReason
    log_probability: float | None = None


class Follower(Protocol):
    """Reads one reply as it is written, such as :class:`routers.parser.CallParser`."""

    @property
    def forced_id(self) -> int | None:
        """The token that must come next whatever the model prefers, such as a head's query, or None."""

    def feed(self, token_id: int) -> object:
        """Take the token that was appended."""


@dataclass
class Start:
    """Where a reply begins.

    Args:
        prompt: (L, d) input embeddings that are still to be read, media in place; at least one.
        past: What was read before them.
        follower: Reads the reply; the tokens that it forces are placed, learned queries among them.
        stream: Number of the reply's random stream; its place in the batch by default.
        limit: The reply is cut at so many tokens, if the options do not cut it before.
    """

    prompt: Tensor
    past: Past | None = None
    follower: Follower | None = None
    stream: int | None = None
    limit: int | None = None


class Constraint(Protocol):
    """Restricts a batch of replies to legal continuations, such as :class:`routers.constraint.CallConstraint`."""

    def mask(self, logits: Tensor) -> Tensor:
        """Set the logits (B, V) of illegal next tokens to -inf."""

    def advance(self, token_ids: Sequence[int | None]) -> None:
        """Take the B tokens that were appended, None where a reply has ended."""

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these of the B replies, in this order."""


class Watcher(Protocol):
    """Sees replies grow."""

    def prefilled(self) -> None:
        """The prompts are read."""

    def appended(self, new: Sequence[tuple[int, int, Tensor]]) -> None:
        """After a step: (reply, token, state (d,) at it) of every reply that grew."""

    def ended(self, reply: int, past: Callable[[], Past]) -> None:
        """A reply has ended; ``past()`` copies the keys and values of its prompt and its tokens."""


Steer = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
"""(logits (B, V), states (B, d) that predict them, reply of each row) -> logits: a router's word before the choice."""


@torch.inference_mode()
def decode(
    reader: Reader,
    starts: Sequence[Start],
    options: DecodingOptions,
    *,
    stop_ids: Sequence[int],
    never_sampled: Tensor | None = None,
    constraint: Constraint | None = None,
    steer: Steer | None = None,
    conditions: RowConditions | None = None,
    watcher: Watcher | None = None,
) -> list[Decoded]:
    """Continue a batch of prompts until each ends its turn or reaches the limit.

    Rows that have ended leave the batch, at once where that costs no more than the rows that change their places, and
    else when they are half of it. Each step waits for the device once.

    Args:
        reader: Reads prompts and what is written.
        starts: Where the replies begin.
        options: Limit and sampling.
        stop_ids: Tokens that end the turn.
        never_sampled: (V,) True for tokens that the model may not choose (media placeholders, queries).
        constraint: Applied before a token is chosen; its rows are the replies.
        steer: Applied before the constraint.
        conditions: What the model is conditioned on besides the prompts' embeddings.
        watcher: Told of every new token.

    Returns:
        One :class:`Decoded` per reply, in order.

    Raises:
        ValueError: For an empty prompt.
    """
    if not starts:
        return []
    for index, start in enumerate(starts):
        if start.prompt.shape[0] == 0:
            raise ValueError(f"prompt {index}: expected at least one token, got none")
    prompts, pasts = [start.prompt for start in starts], [start.past for start in starts]
    reading = reader.read(prompts, pasts, conditions, options.max_new_tokens)
    if watcher is not None:
        watcher.prefilled()

    streams = [index if start.stream is None else start.stream for index, start in enumerate(starts)]
    chooser = Chooser(options, streams)
    replies = [_Growing(start, options.max_new_tokens) for start in starts]
    rows = list(range(len(starts)))
    stops, filler = frozenset(stop_ids), next(iter(stop_ids))

    for _ in range(options.max_new_tokens):
        logits = reading.logits.float()
        if never_sampled is not None:
            logits = logits.masked_fill(never_sampled, float("-inf"))
        if steer is not None:
            logits = steer(logits, reading.states, rows)
        if constraint is not None:
            logits = constraint.mask(logits)
        picked = chooser(logits, rows)
        if options.log_probabilities:
            likely = logits.gather(-1, picked[:, None])[:, 0] - logits.logsumexp(-1)
            for row, value in zip(rows, likely.tolist(), strict=True):
                replies[row].count(value)
        chosen: list[int] = picked.tolist()
        for place, row in enumerate(rows):
            chosen[place] = filler if replies[row].ended else replies[row].choose(chosen[place])
            if not replies[row].ended and chosen[place] in stops:
                replies[row].finish_reason = "stop"
                if watcher is not None:
                    watcher.ended(row, partial(reading.past, place))
        alive = [place for place, row in enumerate(rows) if not replies[row].ended]
        if not alive:
            break
        if constraint is not None:
            constraint.advance([None if replies[row].cut else token for row, token in zip(rows, chosen, strict=True)])
        if 2 * len(alive) <= len(rows) or (reading.keeps_in_place and len(alive) < len(rows)):
            kept = _closed_up(alive) if reading.keeps_in_place else alive
            reading.keep(kept)
            if constraint is not None:
                constraint.keep(kept)
            rows, chosen = [rows[place] for place in kept], [chosen[place] for place in kept]
        reading.append(chosen)
        states = reading.states.unbind(0)
        grown = [(row, chosen[place], states[place]) for place, row in enumerate(rows) if not replies[row].ended]
        places = [place for place, row in enumerate(rows) if not replies[row].ended]
        for row, token, state in grown:
            replies[row].append(token, state)
        if watcher is not None:
            watcher.appended(grown)
            for place in places:
                if replies[rows[place]].ended:
                    watcher.ended(rows[place], partial(reading.past, place))

    empty = starts[0].prompt.new_zeros(0, starts[0].prompt.shape[-1])
    return [
        Decoded(
            reply.token_ids,
            torch.stack(reply.states) if reply.states else empty,
            reply.finish_reason or "length",
            reply.log_probability if options.log_probabilities else None,
        )
        for reply in replies
    ]


def _closed_up(alive: Sequence[int]) -> list[int]:
    """The places that are taken, in an order in which the last of them fill the gaps before them."""
    taken, spare = frozenset(alive), iter([place for place in alive if place >= len(alive)])
    return [place if place in taken else next(spare) for place in range(len(alive))]


class _Growing:
    """A reply that is being written."""

    def __init__(self, start: Start, most: int) -> None:
        self._follower = start.follower
        self._limit = most if start.limit is None else min(most, start.limit)
        self.token_ids: list[int] = []
        self.states: list[Tensor] = []
        self.finish_reason: FinishReason | None = None
        self.log_probability = 0.0

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None

    @property
    def cut(self) -> bool:
        return self.finish_reason == "length"

    @property
    def _forced(self) -> int | None:
        return None if self._follower is None else self._follower.forced_id

    def choose(self, token_id: int) -> int:
        forced = self._forced
        return token_id if forced is None else forced

    def count(self, log_probability: float) -> None:
        if not self.ended and self._forced is None:
            self.log_probability += log_probability

    def append(self, token_id: int, state: Tensor) -> None:
        self.token_ids.append(token_id)
        self.states.append(state)
        if self._follower is not None:
            self._follower.feed(token_id)
        if len(self.token_ids) >= self._limit:
            self.finish_reason = "length"
