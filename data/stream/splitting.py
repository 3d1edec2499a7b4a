"""Samples that are too long for a pack: what may become of them, and dialogues cut between their turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from data.records import Message, Part, Record
from data.render import RenderError, rendered_size
from models.plan import BatchPlan

Oversize = Literal["error", "split", "quarantine"]
OVERSIZE_HINT = "raise data.init_args.max_tokens, or set data.init_args.oversize to 'split' or 'quarantine'"


def too_long_error(key: str, tokens: int, max_tokens: int) -> RenderError:
    """The error of a sample that fits into no pack."""
    return RenderError(f"record '{key}': expected at most max_tokens={max_tokens}, got {tokens} tokens")


def split_record(record: Record, plan: BatchPlan, max_tokens: int) -> list[Record]:
    """Cut a dialogue into parts of whole exchanges, each of at most ``max_tokens``.

    Every reply stands in exactly one part. Each part begins with the system turns, and its first user turn shows the
    media of earlier exchanges again, since questions may still be about them; earlier words are not repeated.

    Args:
        record: The dialogue.
        plan: The model's plan.
        max_tokens: Tokens that a part may have.

    Returns:
        The parts, in order; the record alone if it fits.

    Raises:
        RenderError: If one exchange alone is too long, or there is nothing to cut, or the record has companions.
    """
    if record.companions:
        raise RenderError(f"record '{record.key}': expected a dialogue to cut, got one with companions")
    system = tuple(message for message in record.messages if message.role == "system")
    exchanges = list(_exchanges(record.messages))
    parts: list[Record] = []
    start = 0
    while start < len(exchanges):
        shown = [part for exchange in exchanges[:start] for message in exchange for part in message.content]
        again = list({part.media: part for part in shown if part.media}.values())
        best: Record | None = None
        for stop in range(start + 1, len(exchanges) + 1):
            part = _part(record, system, again, exchanges[start:stop])
            tokens = rendered_size(part, plan).tokens
            if tokens > max_tokens:
                break
            best, start_next = part, stop
        if best is None:
            raise RenderError(
                f"record '{record.key}': expected exchanges of at most max_tokens={max_tokens}, got one of {tokens} "
                f"tokens (exchange {start + 1} of {len(exchanges)})"
            )
        parts.append(best)
        start = start_next
    return parts


def _exchanges(messages: Sequence[Message]) -> Iterator[tuple[Message, ...]]:
    """The user's turns up to and with the reply that follows them."""
    pending: list[Message] = []
    for message in messages:
        if message.role == "system":
            continue
        pending.append(message)
        if message.role == "assistant":
            yield tuple(pending)
            pending = []
    if pending:
        yield tuple(pending)


def _part(
    record: Record, system: tuple[Message, ...], again: Sequence[Part], exchanges: Sequence[tuple[Message, ...]]
) -> Record:
    turns = [message for exchange in exchanges for message in exchange]
    turns[0] = replace(turns[0], content=(*again, *turns[0].content))
    content = [part for message in turns for part in message.content]
    media = {part.media for part in content if part.media}
    targets = {part.target for part in content if part.target is not None}
    return replace(
        record,
        messages=(*system, *turns),
        media={name: item for name, item in record.media.items() if name in media},
        targets={name: item for name, item in record.targets.items() if name in targets},
    )
