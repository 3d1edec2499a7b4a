"""The decode loop: left-padded prefill, cached steps, forced queries, and the hidden state at every new position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class DecodingOptions:
    """How tokens are chosen.

    Args:
        max_new_tokens: A reply that has not ended by then is cut (``finish_reason`` "length").
        temperature: 0 takes the most likely token; above 0 samples.
        top_p: Samples among the most likely tokens whose probabilities add up to this.
        seed: Each reply draws from its own stream, seeded by this and the reply's number, so that batching does not
            change what is sampled.
    """

    max_new_tokens: int = 96
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected at least 1, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature: expected 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a number in (0, 1], got {self.top_p}")


@dataclass(frozen=True)
class Decoded:
    """What one sequence generated.

    Args:
        token_ids: The new tokens without the one that ended the turn.
        hidden_states: (len(token_ids), d), the state *at* each new token.
        finish_reason: "stop" if the model ended its turn, "length" if it was cut.
    """

    token_ids: list[int]
    hidden_states: Tensor
    finish_reason: FinishReason


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


class Opened:
    """Has a reply begin with a given token, and otherwise reads it as another follower does.

    Args:
        token_id: The first token.
        follower: Reads the reply.
    """

    def __init__(self, token_id: int, follower: Follower) -> None:
        self._opening: int | None = token_id
        self._follower = follower

    @property
    def forced_id(self) -> int | None:
        """The first token, then what the follower forces."""
        return self._follower.forced_id if self._opening is None else self._opening

    def feed(self, token_id: int) -> object:
        """Take the token that was appended."""
        self._opening = None
        return self._follower.feed(token_id)


class Constraint(Protocol):
    """Restricts a batch of replies to legal continuations."""

    def mask(self, logits: Tensor) -> Tensor:
        """Set the logits (B, V) of illegal next tokens to -inf."""

    def advance(self, token_ids: Sequence[int]) -> None:
        """Take the B tokens that were appended."""


class RowConditions(Protocol):
    """What conditions each row's steps, such as :class:`models.conditions.Conditions`."""

    def rows(self, index: Tensor) -> RowConditions:
        """Those of the rows that stay in the batch."""

    def following(self, token_ids: Tensor) -> RowConditions:
        """Those of the step of one more token per row, (B,)."""


@torch.inference_mode()
def decode(
    model: Steppable,
    prompts: Sequence[Tensor],
    options: DecodingOptions,
    *,
    stop_ids: Sequence[int],
    never_sampled: Tensor | None = None,
    followers: Sequence[Follower] | None = None,
    constraint: Constraint | None = None,
    streams: Sequence[int] | None = None,
    conditions: RowConditions | None = None,
) -> list[Decoded]:
    """Continue a batch of prompts until each ends its turn or reaches the limit.

    Rows that have ended stay as padding until they are half of the batch; then they leave it and its cache. With a
    ``constraint``, whose rows are those of the call, they stay. Each step waits for the device once.

    Args:
        model: Gives embeddings and cached steps.
        prompts: (L, d) input embeddings of each prompt, media in place.
        options: Limit and sampling.
        stop_ids: Tokens that end the turn.
        never_sampled: (V,) True for tokens that the model may not choose (media placeholders, queries).
        followers: One per prompt; the tokens that they force are placed, learned queries among them.
        constraint: Applied before a token is chosen.
        streams: Number of each reply's random stream; their place in the batch by default.
        conditions: What the model is conditioned on besides the prompts' embeddings.

    Returns:
        One :class:`Decoded` per prompt, in order.

    Raises:
        ValueError: For an empty prompt.
    """
    if not prompts:
        return []
    for index, prompt in enumerate(prompts):
        if prompt.shape[0] == 0:
            raise ValueError(f"prompt {index}: expected at least one token, got none")
    device = prompts[0].device
    inputs_embeds, attention_mask, position_ids = left_pad(prompts, room=options.max_new_tokens)
    width = inputs_embeds.shape[1]
    output = model.step(inputs_embeds, attention_mask[:, :width], position_ids, None, conditions)
    next_positions = position_ids[:, -1:] + 1

    chooser = _Chooser(options, list(streams) if streams is not None else list(range(len(prompts))))
    token_ids: list[list[int]] = [[] for _ in prompts]
    states: list[list[Tensor]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    rows = list(range(len(prompts)))
    stops = frozenset(stop_ids)
    filler = next(iter(stop_ids))

    for new in range(options.max_new_tokens):
        logits = output.logits_last.float()
        if never_sampled is not None:
            logits = logits.masked_fill(never_sampled, float("-inf"))
        if constraint is not None:
            logits = constraint.mask(logits)
        chosen: list[int] = chooser(logits, rows).tolist()
        for place, row in enumerate(rows):
            must = followers[row].forced_id if followers is not None and not ended[row] else None
            chosen[place] = filler if ended[row] else chosen[place] if must is None else must
            ended[row] = ended[row] or chosen[place] in stops
        if all(ended[row] for row in rows):
            break
        if constraint is None and 2 * sum(not ended[row] for row in rows) <= len(rows):
            keep = [place for place, row in enumerate(rows) if not ended[row]]
            kept = torch.tensor(keep, device=device)
            output.cache.batch_select_indices(kept)
            attention_mask, next_positions = attention_mask[kept], next_positions[kept]
            conditions = None if conditions is None else conditions.rows(kept)
            rows, chosen = [rows[place] for place in keep], [chosen[place] for place in keep]
        fed = torch.tensor(chosen, device=device)
        if constraint is not None:
            constraint.advance(chosen)
        conditions = None if conditions is None else conditions.following(fed)
        output = model.step(
            model.embed(fed[:, None]), attention_mask[:, : width + new + 1], next_positions, output.cache, conditions
        )
        next_positions = next_positions + 1
        for place, row in enumerate(rows):
            if not ended[row]:
                token_ids[row].append(chosen[place])
                states[row].append(output.hidden_states[place, -1])
                if followers is not None:
                    followers[row].feed(chosen[place])

    empty = inputs_embeds.new_zeros(0, inputs_embeds.shape[-1])
    return [
        Decoded(ids, torch.stack(rows_states) if rows_states else empty, "stop" if done else "length")
        for ids, rows_states, done in zip(token_ids, states, ended, strict=True)
    ]


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


class _Chooser:
    """Greedy, or the inverse of the sorted cumulative distribution at one uniform number per row."""

    def __init__(self, options: DecodingOptions, streams: Sequence[int]) -> None:
        self._options = options
        self._generators = []
        if options.temperature > 0:
            for stream in streams:
                generator = torch.Generator().manual_seed(options.seed * 1_000_003 + stream)
                self._generators.append(generator)

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        if self._options.temperature == 0:
            return logits.argmax(-1)
        draws = torch.cat([torch.rand(1, generator=self._generators[row]) for row in rows]).to(logits.device)
        probabilities, order = (logits / self._options.temperature).softmax(-1).sort(dim=-1, descending=True)
        cumulative = probabilities.cumsum(-1)
        kept = cumulative - probabilities < self._options.top_p  # the first token is always kept
        mass = (probabilities * kept).sum(-1)
        picked = (cumulative < (draws * mass)[:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)
        return order.gather(-1, picked[:, None])[:, 0]
