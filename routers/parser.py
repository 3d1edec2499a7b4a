"""Token ids in, ordered calls out: streaming, with typed errors, and no token lost."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from layers.calls import Call, Grounding, NodeRef, Region, ResultRef, TimeSpan
from layers.geometry import Box, bin_to_coordinate
from routers.decimals import parse_decimal_box
from routers.grammar import ANCHOR, TEXT, ErrorKind, Grammar, State, Violation, grammar_of
from routers.tasks import Payload
from routers.vocabulary import Vocabulary


@dataclass(frozen=True)
class ParseError:
    """Why a part of a reply is not a call.

    Args:
        kind: What is wrong, see :data:`routers.grammar.ErrorKind`.
        position: The first token that does not fit; the reply's length if it ended too early.
        message: What was expected and what was found.
        token_span: (start, end) of the malformed part; its tokens stay in the text.
    """

    kind: ErrorKind
    position: int
    message: str
    token_span: tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """A stretch of a reply: text, a call, or something malformed that stays in the text.

    Args:
        kind: Which of the three.
        token_span: (start, end); the spans of a reply's pieces follow one another without a gap.
        call: The call.
        error: What is malformed.
    """

    kind: Literal["text", "call", "malformed"]
    token_span: tuple[int, int]
    call: Call | None = None
    error: ParseError | None = None


@dataclass(frozen=True)
class Parsed:
    """A parsed reply.

    Args:
        pieces: All of it, in order.
        calls: The well-formed calls, in order; regions and time spans are fractions of the input, 0 to 1, and
            references index this list.
        errors: One per malformed piece, in order.
        text_ids: The reply without its calls.
    """

    pieces: list[Piece] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    errors: list[ParseError] = field(default_factory=list)
    text_ids: list[int] = field(default_factory=list)


@dataclass
class _Draft:
    """A call that is being written, or the malformed rest of one."""

    task: str
    start: int
    prompt_ids: list[int] = field(default_factory=list)
    groundings: list[Grounding] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    violation: Violation | None = None
    violated_at: int = 0


class CallParser:
    """Parses one reply, token by token.

    A call that goes wrong is malformed up to the next closing token, or to where the next call or the end of the
    turn begins, whatever comes first.  A reference counts the calls that the reply began, well-formed or not, so that
    a malformed call never makes a later reference point to the wrong result.

    Args:
        vocabulary: The control tokens.
        available: Tasks that the sample can have; all if None. Well-formed calls of others are errors, but for those
            that refer to an earlier call, which may have made what they need.
    """

    def __init__(self, vocabulary: Vocabulary, available: Collection[str] | None = None) -> None:
        self._vocabulary = vocabulary
        self._grammar = grammar_of(vocabulary)
        self._available = available
        self._state = State()
        self._ids: list[int] = []
        self._draft: _Draft | None = None
        self._slots: list[int | None] = []  # per call begun: its index among the well-formed ones
        self._text_start = 0
        self._pieces: list[Piece] = []
        self._num_calls = 0

    @property
    def forced_id(self) -> int | None:
        """The query token that must follow, which the decode loop places, or None where the model chooses."""
        if self._draft is not None and self._draft.violation is not None:
            return None
        return self._grammar.forced_id(self._state)

    @property
    def is_outside(self) -> bool:
        """Whether a call could begin here: not within one, and not after the end of the turn."""
        return self._draft is None and self._state.node == Grammar.OUTSIDE

    def text_ids(self) -> list[int]:
        """The text up to here without calls; what a call may still turn out to be is left out until it is closed."""
        pieces = [piece.token_span for piece in self._pieces if piece.call is None]
        if self._draft is None:
            pieces.append((self._text_start, len(self._ids)))
        return [self._ids[index] for span in pieces for index in range(*span)]

    def feed(self, token_id: int) -> Call | None:
        """Take the next token.

        Returns:
            The call that this token completes, if any.
        """
        position = len(self._ids)
        self._ids.append(token_id)
        if self._state.node == Grammar.ENDED:
            return None
        draft = self._draft
        kind = self._grammar.symbol(token_id).kind
        if draft is not None and draft.violation is not None:
            if kind not in ("open", "close", "eos"):
                return None
            self._abandon(draft, position + (kind == "close"))
            if kind == "close":
                return None
        return self._advance(token_id, kind, position)

    def finish(self) -> Parsed:
        """Everything up to here; a call that is still open is unfinished. Feeding may go on."""
        end = len(self._ids)
        pieces = list(self._pieces)
        if self._draft is not None:
            message = f"call of task '{self._draft.task}': expected </{self._draft.task}>, got the end of the reply"
            violation = self._draft.violation or Violation("unfinished", message)
            position = self._draft.violated_at if self._draft.violation else end
            pieces.append(_malformed(violation, position, (self._draft.start, end)))
        elif self._text_start < end:
            pieces.append(Piece("text", (self._text_start, end)))
        text_ids = [self._ids[i] for piece in pieces if piece.call is None for i in range(*piece.token_span)]
        return Parsed(
            pieces=pieces,
            calls=[piece.call for piece in pieces if piece.call is not None],
            errors=[piece.error for piece in pieces if piece.error is not None],
            text_ids=text_ids,
        )

    def _advance(self, token_id: int, kind: str, position: int) -> Call | None:
        step = self._grammar.step(self._state, token_id)
        draft = self._draft
        if isinstance(step, State):
            return self._accept(step, token_id, kind, position)
        if draft is None:
            if kind != "special":  # padding and the like are text here
                self._add_malformed(step, position, (position, position + 1))
            return None
        draft.violation, draft.violated_at = step, position
        if kind in ("open", "eos"):
            self._abandon(draft, position)
            return self._advance(token_id, kind, position)
        if kind == "close":
            self._abandon(draft, position + 1)
        return None

    def _accept(self, step: State, token_id: int, kind: str, position: int) -> Call | None:
        before, self._state = self._grammar.nodes[self._state.node], step
        draft = self._draft
        if kind == "open":
            self._end_text(position)
            task = self._grammar.nodes[step.node].task
            assert task is not None
            self._draft = _Draft(task.name, position)
            self._slots.append(None)
        elif draft is None:
            return None
        elif kind == "close":
            return self._complete(draft, position)
        elif self._grammar.nodes[step.node].place == "grounded":
            assert before.payload is not None
            self._add_grounding(draft, before.payload, step, position)
        elif before.place == "prompt" and self._grammar.symbol(token_id) == TEXT:
            draft.prompt_ids.append(token_id)
        elif kind == "query" or self._grammar.symbol(token_id) == ANCHOR:
            draft.positions.append(position)
        return None

    def _add_grounding(self, draft: _Draft, payload: Payload, state: State, position: int) -> None:
        table = self._vocabulary.table
        grounding: Grounding
        if payload == "regions":
            grounding = Region(self._box(state))
        elif payload == "time_spans":
            start, end = (bin_to_coordinate(value, 1.0, table.num_time_bins) for value in state.values)
            grounding = TimeSpan(start, end)
        elif payload == "nodes":
            grounding = NodeRef(state.values[0])
        else:
            slot = self._slots[state.values[0]]
            if slot is None:
                message = f"expected a well-formed earlier call, got number {state.values[0]}, which is not"
                draft.violation, draft.violated_at = Violation("reference", message), position
                return
            grounding = ResultRef(slot)
        draft.groundings.append(grounding)

    def _box(self, state: State) -> Box:
        table = self._vocabulary.table
        if table.coordinates == "bins":
            x1, y1, x2, y2 = (bin_to_coordinate(value, 1.0, table.num_bins) for value in state.values)
            return x1, y1, x2, y2
        box = parse_decimal_box(state.text)
        assert box is not None, f"the grammar let {state.text!r} pass"
        return box

    def _complete(self, draft: _Draft, position: int) -> Call | None:
        span = (draft.start, position + 1)
        refers = any(isinstance(item, ResultRef) for item in draft.groundings)
        if self._available is not None and draft.task not in self._available and not refers:
            message = f"expected a call of {sorted(self._available)}, got task '{draft.task}'"
            self._add_malformed(Violation("unavailable", message), draft.start, span)
            self._draft = None
            return None
        task = self._vocabulary.table[draft.task]
        if task.link == "queries":
            positions = draft.positions[1:]
        else:
            positions = [anchor + task.state_offset for anchor in draft.positions]
        if task.reads_prompt:
            positions = [*range(draft.start + 1, draft.start + 1 + len(draft.prompt_ids)), *positions]
        call = Call(
            task=draft.task,
            prompt=self._vocabulary.decode_text(draft.prompt_ids).strip(),
            groundings=tuple(draft.groundings),
            token_span=span,
            state_positions=tuple(positions),
        )
        self._pieces.append(Piece("call", span, call=call))
        self._slots[-1] = self._num_calls
        self._num_calls += 1
        self._draft, self._text_start = None, position + 1
        return call

    def _abandon(self, draft: _Draft, end: int) -> None:
        """End a malformed call before position ``end`` and go on outside of it."""
        assert draft.violation is not None
        self._add_malformed(draft.violation, draft.violated_at, (draft.start, end))
        self._draft, self._state = None, State(begun=self._state.begun)

    def _add_malformed(self, violation: Violation, position: int, span: tuple[int, int]) -> None:
        last = self._pieces[-1].error if self._pieces and self._text_start == span[0] else None
        if violation.kind == "stray" and last is not None and last.kind == "stray" and last.token_span[1] == span[0]:
            merged = replace(last, token_span=(last.token_span[0], span[1]))
            self._pieces[-1] = Piece("malformed", merged.token_span, error=merged)
        else:
            self._end_text(span[0])
            self._pieces.append(_malformed(violation, position, span))
        self._text_start = span[1]

    def _end_text(self, end: int) -> None:
        if self._text_start < end:
            self._pieces.append(Piece("text", (self._text_start, end)))
        self._text_start = end


def parse(ids: Iterable[int], vocabulary: Vocabulary, available: Collection[str] | None = None) -> Parsed:
    """Parse a whole reply.

    Args:
        ids: The reply's token ids; what follows the end of the turn is text.
        vocabulary: The control tokens.
        available: Tasks that the sample can have; all if None.
    """
    parser = CallParser(vocabulary, available)
    for token_id in ids:
        parser.feed(token_id)
    return parser.finish()


def _malformed(violation: Violation, position: int, span: tuple[int, int]) -> Piece:
    error = ParseError(violation.kind, position, violation.message, span)
    return Piece("malformed", span, error=error)
