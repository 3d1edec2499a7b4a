"""Replies while they are written: calls are answered as they close, and a listener is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from data.records import Message, Part
from inference.calling import HeadCaller, PendingReply, to_original
from inference.events import CallAnswered, CallWritten, Listener, TextWritten
from inference.files import grounding_to_json
from inference.past import Past, PastStore, Symbols
from layers.calls import Call, MediaFeatures
from routers.parser import CallParser, Parsed

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Writing:
    """One reply: reads it token by token for the decode loop.

    Args:
        index: Which conversation.
        parser: Reads the tokens.
        media: The conversation's media.
        available: Tasks that it may call.
        later: Tasks that it may call after a call, to which they may refer.
        opening: The token that it begins with, if that is not the model's choice.
        symbols: Of its prompt.
        episode: The conversation's.
    """

    def __init__(
        self,
        index: int,
        parser: CallParser,
        media: list[MediaFeatures],
        available: Collection[str],
        later: Collection[str],
        opening: int | None = None,
        symbols: Symbols = (),
        episode: str = "",
    ) -> None:
        self.index, self.parser, self.symbols = index, parser, symbols
        self.available, self.later = available, later
        self.pending = PendingReply(media, episode=episode)
        self.told = 0
        self._opening = opening

    @property
    def forced_id(self) -> int | None:
        """The token that must come next, or None where the model chooses."""
        return self.parser.forced_id if self._opening is None else self._opening

    @property
    def standing(self) -> Collection[str] | None:
        """Tasks whose calls may begin here; None where none can."""
        if self._opening is not None or not self.parser.is_outside:
            return None
        return self.later if self.pending.calls else self.available

    def feed(self, token_id: int) -> None:
        """Take the token that was appended."""
        self._opening = None
        call = self.parser.feed(token_id)
        if call is not None:
            self.pending.calls.append(call)


class BatchWriting:
    """Watches the replies of a batch.

    Args:
        replies: In the order of the decode loop.
        caller: Answers their calls.
        decode_text: Token ids to text.
        eager: Answer a call as soon as it closes, and not when all replies are written.
        listener: Told of what happens.
        store: Keeps what was read of each conversation.
    """

    def __init__(
        self,
        replies: Sequence[Writing],
        caller: HeadCaller,
        decode_text: Callable[[list[int]], str],
        eager: bool,
        listener: Listener | None,
        store: PastStore | None,
    ) -> None:
        self.replies, self.caller, self.decode_text = replies, caller, decode_text
        self.eager, self.listener, self.store = eager, listener, store
        self.head_seconds, self.prefill_seconds = 0.0, 0.0
        self._started = time.perf_counter()
        self._texts = [""] * len(replies)

    def prefilled(self) -> None:
        """Note when the prompts are read."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.prefill_seconds = time.perf_counter() - self._started

    def appended(self, new: Sequence[tuple[int, int, Tensor]]) -> None:
        """Take one step's tokens and states."""
        for row, token_id, state in new:
            self.replies[row].pending.token_ids.append(token_id)
            self.replies[row].pending.hidden_states.append(state)
            if self.listener is not None:
                self._tell_text(row)
        if self.eager:
            self.answer([row for row, _, _ in new])

    def ended(self, reply: int, past: Callable[[], Past]) -> None:
        """Keep what was read of a conversation, for its next turn."""
        if self.store is not None:
            writing = self.replies[reply]
            self.store.add((*writing.symbols, *writing.pending.token_ids), past())

    def answer(self, rows: Sequence[int]) -> None:
        """Answer the calls of some replies that are not answered yet."""
        asked = [self.replies[row] for row in rows if self.replies[row].pending.next_call is not None]
        if not asked:
            return
        if self.listener is not None:
            for writing in asked:
                for number in range(len(writing.pending.results), len(writing.pending.calls)):
                    call = to_original(writing.pending.calls[number], writing.pending.media)
                    self.listener(CallWritten(writing.index, number, call))
        started = time.perf_counter()
        self.caller.answer([writing.pending for writing in asked])
        self.head_seconds += time.perf_counter() - started
        if self.listener is not None:
            for writing in asked:
                errors = {error.call_index: error for error in writing.pending.errors}
                for number in range(writing.told, len(writing.pending.results)):
                    result = writing.pending.results[number]
                    self.listener(CallAnswered(writing.index, number, result, errors.get(number)))
                writing.told = len(writing.pending.results)

    def finish(self) -> list[Parsed]:
        """The replies as parsed, every call answered and all text told."""
        parsed = [writing.parser.finish() for writing in self.replies]
        self.answer(range(len(self.replies)))
        if self.listener is not None:
            for row, routed in enumerate(parsed):
                self._tell(row, self.decode_text(routed.text_ids))
        return parsed

    def _tell_text(self, row: int) -> None:
        text = self.decode_text(self.replies[row].parser.text_ids())
        if not text.endswith(_UNFINISHED):  # the last character may lack bytes that the next token brings
            self._tell(row, text)

    def _tell(self, row: int, text: str) -> None:
        known = self._texts[row]
        if len(text) > len(known) and text.startswith(known):
            self._texts[row] = text
            assert self.listener is not None
            self.listener(TextWritten(self.replies[row].index, text[len(known) :]))


def as_message(
    parsed: Parsed, calls: Sequence[Call], token_ids: Sequence[int], decode_text: Callable[[list[int]], str]
) -> Message:
    """A reply as a record holds a turn: its text and calls in order; what is malformed is text.

    Args:
        parsed: The reply.
        calls: Its calls in original units.
        token_ids: Its tokens.
        decode_text: Token ids to text.
    """
    parts: list[Part] = []
    following = iter(calls)
    for piece in parsed.pieces:
        if piece.call is not None:
            call = next(following)
            groundings = tuple(grounding_to_json(item) for item in call.groundings)
            parts.append(Part("call", task=call.task, prompt=call.prompt, groundings=groundings))
            continue
        text = decode_text(list(token_ids[slice(*piece.token_span)]))
        if parts and parts[-1].type == "text":
            parts[-1] = replace(parts[-1], text=parts[-1].text + text)
        else:
            parts.append(Part("text", text=text))
    return Message("assistant", tuple(parts))
