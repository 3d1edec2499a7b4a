"""Constrained decoding: only tokens from which the reply can still become well-formed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from routers.grammar import SPECIAL, TEXT, Grammar, State, grammar_of
from routers.vocabulary import Vocabulary


class CallConstraint:
    """Masks illegal next tokens for a batch of replies; the cost of a step does not depend on their lengths.

    Where a query token must follow, nothing is left to choose: the decode loop places it, see :meth:`forced_ids`.
    The mask leaves text there, so that a row always has a finite logit.

    A task that may refer to earlier calls can begin after one even where it is not available: what it needs may be what
    that call made. It cannot end before it has referred to one.

    Args:
        vocabulary: The control tokens.
        available: Per reply, the tasks that it may call.

    Raises:
        ValueError: If an available task is not in the vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary, available: Sequence[Collection[str]]) -> None:
        unknown = sorted({name for names in available for name in names if name not in vocabulary.open_ids})
        if unknown:
            raise ValueError(f"available tasks: expected some of {sorted(vocabulary.open_ids)}, got {unknown}")
        self._vocabulary = vocabulary
        self._grammar = grammar_of(vocabulary)
        self._available = [frozenset(names) for names in available]
        self._states = [State() for _ in available]
        self._barred = torch.tensor([[name not in names for name in vocabulary.open_ids] for names in self._available])
        refers = [vocabulary.table[name].refers for name in vocabulary.open_ids]
        self._may_refer = torch.tensor(refers) if any(refers) else None
        self._has_referred = [False for _ in available]

    def mask(self, logits: Tensor) -> Tensor:
        """Set the logits (B, V) of illegal next tokens to -inf."""
        batch, vocab_size = logits.shape
        if batch != len(self._states):
            raise ValueError(f"logits: expected {len(self._states)} rows, one per reply, got {batch}")
        tables = _tables(self._vocabulary, vocab_size, logits.device)
        if self._barred.device != logits.device:
            self._barred = self._barred.to(logits.device)
            self._may_refer = None if self._may_refer is None else self._may_refer.to(logits.device)
        bounds = [(state.node, *self._grammar.bounds(state)) for state in self._states]
        node, low, high = torch.tensor(bounds, device=logits.device).T
        illegal = tables.illegal[node]
        if len(tables.open_ids):
            illegal[:, tables.open_ids] |= self._barred
        if len(tables.value_ids):
            illegal[:, tables.value_ids] |= (tables.values < low[:, None]) | (tables.values > high[:, None])
        self._allow_decimals(illegal)
        if self._may_refer is not None:
            self._bar_ends(illegal)
        return logits.masked_fill(illegal, float("-inf"))

    def advance(self, token_ids: Tensor | Sequence[int | None]) -> None:
        """Take the (B,) tokens that were appended; after a reply's end, and where there is None, they are ignored.

        Raises:
            ValueError: If a token is not legal, naming the reply.
        """
        tokens: list[int | None] = token_ids.tolist() if isinstance(token_ids, Tensor) else list(token_ids)
        if len(tokens) != len(self._states):
            raise ValueError(f"token_ids: expected {len(self._states)}, one per reply, got {len(tokens)}")
        for row, (state, token_id) in enumerate(zip(self._states, tokens, strict=True)):
            if state.node == Grammar.ENDED or token_id is None:
                continue
            step = self._grammar.step(state, token_id)
            if not isinstance(step, State):
                raise ValueError(f"reply {row}: expected a token that the mask allows: {step.message}")
            self._states[row] = step
            if self._may_refer is not None:
                self._note_reference(row, state, step, token_id)

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these of the replies, in this order."""
        self._available = [self._available[place] for place in places]
        self._states = [self._states[place] for place in places]
        self._has_referred = [self._has_referred[place] for place in places]
        self._barred = self._barred[torch.tensor(places, device=self._barred.device)]

    def forced_ids(self) -> list[int | None]:
        """Per reply, the query token that must follow, or None where the model chooses."""
        return [self._grammar.forced_id(state) for state in self._states]

    def _note_reference(self, row: int, before: State, after: State, token_id: int) -> None:
        """Follow whether the call that is being written has referred to an earlier one."""
        if after.begun > before.begun:
            self._has_referred[row] = False
            if before.begun == 0:  # later calls may refer to this one
                assert self._may_refer is not None
                self._barred[row] &= ~self._may_refer
        elif token_id in self._vocabulary.ref_ids:
            self._has_referred[row] = True

    def _bar_ends(self, illegal: Tensor) -> None:
        """A call of a task that is not available goes on until it has referred to an earlier one."""
        for row, state in enumerate(self._states):
            task = self._grammar.nodes[state.node].task
            if task is None or self._has_referred[row] or task.name in self._available[row]:
                continue
            illegal[row, self._vocabulary.close_ids[task.name]] = True
            if self._vocabulary.anchor_id is not None:
                illegal[row, self._vocabulary.anchor_id] = True

    def _allow_decimals(self, illegal: Tensor) -> None:
        decimals = self._grammar.decimals
        if decimals is None:
            return
        for row, state in enumerate(self._states):
            if self._grammar.nodes[state.node].place == "decimals":
                following = decimals.continuations(state.text)
                if decimals.complete(state.text):
                    assert self._vocabulary.end_region_id is not None
                    following = (*following, self._vocabulary.end_region_id)
                illegal[row, torch.tensor(following, device=illegal.device)] = False


def never_sampled_mask(vocabulary: Vocabulary, vocab_size: int, device: torch.device | str = "cpu") -> Tensor:
    """(vocab_size,) True where no model may sample, constrained or not.

    These are media placeholders, query tokens, and rows of the output that the tokenizer does not have.
    """
    banned = torch.zeros(vocab_size, dtype=torch.bool)
    banned[sorted(vocabulary.never_sampled_ids)] = True
    banned[len(vocabulary.tokenizer) :] = True
    return banned.to(device)


@dataclass(frozen=True)
class _Tables:
    """The automaton as tensors: illegal tokens per node (nodes, V), and the ids that state decides on besides."""

    illegal: Tensor
    open_ids: Tensor
    value_ids: Tensor
    values: Tensor


@lru_cache(maxsize=8)
def _tables(vocabulary: Vocabulary, vocab_size: int, device: torch.device) -> _Tables:
    grammar = grammar_of(vocabulary)
    if vocab_size < grammar.size:
        raise ValueError(f"logits: expected at least {grammar.size} columns, one per token, got {vocab_size}")
    text = torch.zeros(vocab_size, dtype=torch.bool)
    text[sorted(set(vocabulary.tokenizer.get_vocab().values()))] = True
    text[sorted(grammar.symbols)] = False
    ids: dict[object, list[int]] = {}
    for token_id, symbol in grammar.symbols.items():
        ids.setdefault(symbol, []).append(token_id)
    illegal = torch.ones(len(grammar.nodes), vocab_size, dtype=torch.bool)
    for index, node in enumerate(grammar.nodes):
        if node.place == "decimals":
            continue  # decided token by token
        for symbol in node.arcs:
            if symbol == TEXT or symbol.kind == "query":
                illegal[index] &= ~text
            elif symbol != SPECIAL:
                illegal[index, ids[symbol]] = False
    illegal[Grammar.ENDED, vocabulary.eos_id] = False
    return _Tables(
        illegal=illegal.to(device),
        open_ids=torch.tensor(list(vocabulary.open_ids.values()), dtype=torch.long, device=device),
        value_ids=torch.tensor(list(grammar.values), dtype=torch.long, device=device),
        values=torch.tensor(list(grammar.values.values()), device=device),
    )
