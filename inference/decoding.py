"""The decode loop: left-padded prefill, cached steps, forced queries, and the hidden state at every new position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.choosing import Chooser, DecodingOptions
from inference.past import Past, join_pasts

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


class Steppable(Protocol):
    """The part of a Generalist that the loop needs."""

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embeddings of (B, S) token ids, query tokens included."""

    def step(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any, conditions: Any = None
    ) -> Any:
        """One cached forward: an object with ``logits_last`` (B, V), ``hidden_states`` (B, S, d) and ``cache``."""


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


class RowConditions(Protocol):
    """What conditions each row's steps, such as :class:`models.conditions.Conditions`."""

    def rows(self, index: Tensor) -> RowConditions:
        """Those of the rows that stay in the batch."""

    def following(self, token_ids: Tensor) -> RowConditions:
        """Those of the step of one more token per row, (B,)."""


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
    model: Steppable,
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

    Rows that have ended stay as padding until they are half of the batch; then they leave it and its cache. Each step
    waits for the device once.

    Args:
        model: Gives embeddings and cached steps.
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
    output, attention_mask, next_positions = prefill(model, starts, conditions, options.max_new_tokens)
    width = attention_mask.shape[1] - options.max_new_tokens
    device = attention_mask.device
    if watcher is not None:
        watcher.prefilled()

    streams = [index if start.stream is None else start.stream for index, start in enumerate(starts)]
    chooser = Chooser(options, streams)
    replies = [_Growing(start, options.max_new_tokens) for start in starts]
    rows = list(range(len(starts)))
    stops, filler = frozenset(stop_ids), next(iter(stop_ids))

    for new in range(options.max_new_tokens):
        logits = output.logits_last.float()
        if never_sampled is not None:
            logits = logits.masked_fill(never_sampled, float("-inf"))
        if steer is not None:
            logits = steer(logits, output.hidden_states[:, -1], rows)
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
                    watcher.ended(row, _Copied(output.cache, place, attention_mask[place, : width + new]))
        alive = [place for place, row in enumerate(rows) if not replies[row].ended]
        if not alive:
            break
        if constraint is not None:
            constraint.advance([None if replies[row].cut else token for row, token in zip(rows, chosen, strict=True)])
        if 2 * len(alive) <= len(rows):
            kept = torch.tensor(alive, device=device)
            output.cache.batch_select_indices(kept)
            attention_mask, next_positions = attention_mask[kept], next_positions[kept]
            conditions = None if conditions is None else conditions.rows(kept)
            if constraint is not None:
                constraint.keep(alive)
            rows, chosen = [rows[place] for place in alive], [chosen[place] for place in alive]
        fed = torch.tensor(chosen, device=device)
        conditions = None if conditions is None else conditions.following(fed)
        output = model.step(
            model.embed(fed[:, None]), attention_mask[:, : width + new + 1], next_positions, output.cache, conditions
        )
        next_positions = next_positions + 1
        grown = [(place, row) for place, row in enumerate(rows) if not replies[row].ended]
        for place, row in grown:
            replies[row].append(chosen[place], output.hidden_states[place, -1])
        if watcher is not None:
            watcher.appended([(row, chosen[place], output.hidden_states[place, -1]) for place, row in grown])
            for place, row in grown:
                if replies[row].ended:
                    watcher.ended(row, _Copied(output.cache, place, attention_mask[place, : width + new + 1]))

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


def prefill(
    model: Steppable, starts: Sequence[Start], conditions: RowConditions | None, room: int = 0
) -> tuple[Any, Tensor, Tensor]:
    """Read a batch of prompts.

    Args:
        model: Gives cached steps.
        starts: Prompts, with or without a past.
        conditions: Of the prompts' positions.
        room: Columns of ones that the mask carries for tokens to come.

    Returns:
        The model's output, the mask (B, past + S + room) with 0 on padding, and (B, 1) positions of what comes next.
    """
    embeds, attention_mask, position_ids = left_pad([start.prompt for start in starts], room)
    cache = None
    if any(start.past is not None for start in starts):
        cache, before = join_pasts([start.past for start in starts])
        position_ids = position_ids + before.sum(1, keepdim=True)
        attention_mask = torch.cat([before, attention_mask], dim=1)
    width = attention_mask.shape[1] - room
    output = model.step(embeds, attention_mask[:, :width], position_ids, cache, conditions)
    return output, attention_mask, position_ids[:, -1:] + 1


def read_pasts(model: Steppable, prompts: Sequence[Tensor], conditions: RowConditions | None) -> list[Past]:
    """What follows the reading of (L, d) embeddings of rows that nothing was read of."""
    output, attention_mask, _ = prefill(model, [Start(prompt) for prompt in prompts], conditions)
    return [Past.of(output.cache, place, mask.bool()) for place, mask in enumerate(attention_mask)]


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


@dataclass(frozen=True)
class _Copied:
    """Copies a row's past when it is called for, which must be before the next step."""

    cache: Any
    place: int
    mask: Tensor

    def __call__(self) -> Past:
        return Past.of(self.cache, self.place, self.mask.bool())
