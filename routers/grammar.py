"""The automaton of task calls: the one definition of what may follow what, for the parser and the constraint alike.

A reply is ordinary text with calls in between::

    call      := <task> text* grounding* [<anchor> query*] </task>
    grounding := <region> loc loc loc loc | <region> decimals </region> | <span> time time | <node> node
               | <result> ref

What stands in brackets depends on the task's link, which groundings may occur on its payload.  Boxes and time spans
are ordered, and a reference points to an earlier call of the reply.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

from routers.decimals import DecimalBoxes
from routers.tasks import Payload, TaskSpec
from routers.vocabulary import Vocabulary

ErrorKind = Literal[
    "stray",  # a control token outside of calls
    "payload",  # something that the task does not take
    "region",  # a box that is malformed, or whose corners are not ordered
    "time_span",  # likewise
    "node",  # a node marker without a node
    "reference",  # a reference to something that is not an earlier call
    "unexpected",  # any other token out of place
    "incomplete",  # closed too early
    "mismatched",  # closed by another task's token
    "unclosed",  # another call begins inside
    "unfinished",  # the turn ends inside
    "unavailable",  # well-formed, but of a task that the sample cannot have
]
Place = Literal["outside", "ended", "prompt", "grounded", "value", "decimals", "anchored", "query"]

UNBOUNDED = 2**31 - 1


class Symbol(NamedTuple):
    """A class of tokens that the automaton does not tell apart.

    Args:
        kind: "text", "eos", "open", "close", "anchor", "marker", "end_region", "value", "query", "media" or "special".
        detail: The task of "open", "close" and "query" (with the query's index), the payload of "marker" and "value".
    """

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.detail}".strip()


TEXT, EOS, SPECIAL = Symbol("text"), Symbol("eos"), Symbol("special")
ANCHOR, END_REGION = Symbol("anchor"), Symbol("end_region")


@dataclass
class Node:
    """A node of the automaton: a place inside a task's call, and where each symbol leads."""

    place: Place
    task: TaskSpec | None = None
    payload: Payload | None = None
    arcs: dict[Symbol, int] = field(default_factory=dict)


class State(NamedTuple):
    """Where a reply stands.

    Args:
        node: Index into :attr:`Grammar.nodes`.
        values: Bins or indices of the grounding that is being written, or has just been completed.
        text: Decimals of the box likewise.
        begun: Calls begun so far, well-formed or not; a reference counts these.
    """

    node: int = 0
    values: tuple[int, ...] = ()
    text: str = ""
    begun: int = 0


class Violation(NamedTuple):
    """Why a token cannot stand where it does."""

    kind: ErrorKind
    message: str


class Grammar:
    """The automaton of a vocabulary; build it with :func:`grammar_of`, which keeps it.

    Args:
        vocabulary: The control tokens.

    Attributes:
        nodes: The automaton's nodes; the first two are outside of calls and after the end of the turn.
        symbols: Symbol of each token id that is not text.
        values: Value of each token id that has one: a bin, or the index of a node or an earlier call.
        decimals: How boxes are written in decimals, or None.
    """

    OUTSIDE = 0
    ENDED = 1

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.symbols, self.values = _token_symbols(vocabulary)
        self.size = len(vocabulary.tokenizer)
        self.decimals = DecimalBoxes(vocabulary.tokenizer) if vocabulary.end_region_id is not None else None
        self.nodes: list[Node] = [Node("outside"), Node("ended")]
        self.nodes[self.OUTSIDE].arcs = {TEXT: self.OUTSIDE, EOS: self.ENDED}
        for task in vocabulary.table:
            self._add_task(task)

    def symbol(self, token_id: int) -> Symbol:
        """The class of a token id; ids that the tokenizer does not have are special."""
        known = self.symbols.get(token_id)
        if known is not None:
            return known
        return TEXT if 0 <= token_id < self.size else SPECIAL

    def step(self, state: State, token_id: int) -> State | Violation:
        """The state after one more token, or why that token is illegal."""
        node = self.nodes[state.node]
        symbol = self.symbol(token_id)
        target = node.arcs.get(symbol)
        if target is None:
            return self._violation(node, symbol, token_id)
        if symbol.kind == "open":
            return State(target, begun=state.begun + 1)
        if node.place == "decimals":
            return self._step_decimals(state, symbol, target, token_id)
        value = self.values.get(token_id)
        if value is None:
            return State(target, begun=state.begun)
        low, high = self.bounds(state)
        if not low <= value <= high:
            return self._violation_of_value(state, value)
        values = () if symbol.kind == "marker" else (*state.values, value)
        return State(target, values, begun=state.begun)

    def bounds(self, state: State) -> tuple[int, int]:
        """The lowest and highest value that the next token may have, if it has one."""
        node = self.nodes[state.node]
        if node.place == "value" and node.payload in ("regions", "time_spans"):
            width = 2 if node.payload == "regions" else 1
            return (state.values[-width] if len(state.values) >= width else 0), UNBOUNDED
        if node.place == "value" and node.payload == "nodes":
            return 0, UNBOUNDED
        return 0, state.begun - 2  # earlier calls; the marker of a reference has value 0, so it needs one at least

    def forced_id(self, state: State) -> int | None:
        """The query token that must follow, which the decode loop places, or None where the model chooses."""
        node = self.nodes[state.node]
        if node.place != "query":
            return None
        assert node.task is not None
        (symbol,) = node.arcs
        return self.vocabulary.query_ids[node.task.name][int(symbol.detail.rpartition(" ")[2])]

    def describe(self, token_id: int) -> str:
        """A token as an error message names it."""
        if 0 <= token_id < self.size:
            return repr(self.vocabulary.tokenizer.convert_ids_to_tokens(token_id))
        return f"id {token_id}, which the tokenizer does not have"

    def _add_task(self, task: TaskSpec) -> None:
        grounded = self._node("grounded", task)
        start = self._node("prompt", task)
        ends: dict[Symbol, int] = {}
        if task.has_anchor:
            closing = self._node("anchored", task)
            self.nodes[closing].arcs[Symbol("close", task.name)] = self.OUTSIDE
            for index in reversed(range(task.num_queries)):
                query = self._node("query", task)
                self.nodes[query].arcs[Symbol("query", f"{task.name} {index}")] = closing
                closing = query
            ends[ANCHOR] = closing
        else:
            ends[Symbol("close", task.name)] = self.OUTSIDE
        for payload, length in (("regions", 4), ("time_spans", 2), ("nodes", 1), ("results", 1)):
            if payload in task.payload:
                ends[Symbol("marker", payload)] = self._grounding(task, payload, length, grounded)
        self.nodes[grounded].arcs = dict(ends)
        self.nodes[start].arcs = {**ends, TEXT: start} if "prompt" in task.payload else dict(ends)
        self.nodes[self.OUTSIDE].arcs[Symbol("open", task.name)] = start

    def _grounding(self, task: TaskSpec, payload: Payload, length: int, grounded: int) -> int:
        if payload == "regions" and self.decimals is not None:
            node = self._node("decimals", task, payload)
            self.nodes[node].arcs = {TEXT: node, END_REGION: grounded}
            return node
        following = grounded
        for _ in range(length):
            node = self._node("value", task, payload)
            self.nodes[node].arcs[Symbol("value", payload)] = following
            following = node
        return following

    def _node(self, place: Place, task: TaskSpec, payload: Payload | None = None) -> int:
        self.nodes.append(Node(place, task, payload))
        return len(self.nodes) - 1

    def _step_decimals(self, state: State, symbol: Symbol, target: int, token_id: int) -> State | Violation:
        assert self.decimals is not None
        if symbol == END_REGION:
            if not self.decimals.complete(state.text):
                return Violation("region", f"expected a box 'x1,y1,x2,y2', got {state.text!r}")
            return State(target, text=state.text, begun=state.begun)
        text = self.decimals.append(state.text, token_id)
        if text is None:
            got = self.describe(token_id)
            return Violation("region", f"expected decimals x1 <= x2, y1 <= y2 after {state.text!r}, got {got}")
        return State(target, text=text, begun=state.begun)

    def _violation_of_value(self, state: State, value: int) -> Violation:
        payload = self.nodes[state.node].payload
        if payload == "regions":
            return Violation("region", f"expected x1 <= x2 and y1 <= y2, got bin {value} after {list(state.values)}")
        if payload == "time_spans":
            return Violation("time_span", f"expected start <= end, got bin {value} after {list(state.values)}")
        return Violation("reference", f"expected one of {state.begun - 1} earlier calls, got number {value}")

    def _violation(self, node: Node, symbol: Symbol, token_id: int) -> Violation:
        got = self.describe(token_id)
        if node.task is None:
            return Violation("stray", f"expected text or a call, got {got} outside of calls")
        where = f"call of task '{node.task.name}'"
        if symbol == EOS:
            return Violation("unfinished", f"{where}: expected {node.task.close_token}, got the end of the turn")
        if symbol.kind == "open":
            return Violation("unclosed", f"{where}: expected {node.task.close_token}, got {got}")
        if symbol.kind == "close" and symbol.detail != node.task.name:
            return Violation("mismatched", f"{where}: expected {node.task.close_token}, got {got}")
        expected = ", ".join(str(item) for item in node.arcs)
        message = f"{where}: expected {expected}, got {got}"
        kinds: dict[str | None, ErrorKind] = {"regions": "region", "time_spans": "time_span", "nodes": "node"}
        if node.payload is not None:
            return Violation(kinds.get(node.payload, "reference"), message)
        if symbol.kind == "close":
            return Violation("incomplete", message)
        wanted = "prompt" if symbol == TEXT else symbol.detail if symbol.kind == "marker" else None
        if wanted is not None and wanted not in node.task.payload:
            return Violation("payload", f"{where}: expected a payload of {list(node.task.payload)}, got {wanted}")
        return Violation("unexpected", message)


@lru_cache(maxsize=8)
def grammar_of(vocabulary: Vocabulary) -> Grammar:
    """The vocabulary's automaton, built once."""
    return Grammar(vocabulary)


def _token_symbols(vocabulary: Vocabulary) -> tuple[dict[int, Symbol], dict[int, int]]:
    tokenizer = vocabulary.tokenizer
    own = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    unknown = {tokenizer.unk_token_id} - ends  # stands for text that the tokenizer cannot write
    symbols = dict.fromkeys(own - unknown, SPECIAL)
    symbols[vocabulary.eos_id] = EOS
    symbols |= {index: Symbol("open", task) for task, index in vocabulary.open_ids.items()}
    symbols |= {index: Symbol("close", task) for task, index in vocabulary.close_ids.items()}
    symbols |= {index: Symbol("media", kind) for kind, index in vocabulary.media_ids.items()}
    for task, queries in vocabulary.query_ids.items():
        symbols |= {index: Symbol("query", f"{task} {number}") for number, index in enumerate(queries)}
    groundings = (
        ("regions", vocabulary.region_id, vocabulary.loc_ids),
        ("time_spans", vocabulary.span_id, vocabulary.time_ids),
        ("nodes", vocabulary.node_marker_id, vocabulary.node_ids),
        ("results", vocabulary.result_id, vocabulary.ref_ids),
    )
    values: dict[int, int] = {}
    for payload, marker, ids in groundings:
        if marker is not None:
            symbols[marker] = Symbol("marker", payload)
            symbols |= dict.fromkeys(ids, Symbol("value", payload))
            values |= {index: value for value, index in enumerate(ids)}
    if vocabulary.anchor_id is not None:
        symbols[vocabulary.anchor_id] = ANCHOR
    if vocabulary.end_region_id is not None:
        symbols[vocabulary.end_region_id] = END_REGION
    if vocabulary.result_id is not None:
        values[vocabulary.result_id] = 0
    return symbols, values
