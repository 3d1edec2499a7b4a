"""Retrieval by generation: what may be written is constrained to what the corpus holds, and n-grams vote for documents.

A unified generative retriever (UGR, https://arxiv.org/abs/2304.14856) names documents, passages, sentences and
entities alike by n-grams that occur in them. The language model writes n-grams under the constraint that each continues
somewhere in the corpus. What it writes, weighed by how much likelier it is given the question than by itself, adds up
to a score of every document that holds it, as in SEAL (https://arxiv.org/abs/2204.10628):
``w(n) = max(0, log [p(n|q) (1 - p(n)) / (p(n) (1 - p(n|q)))])`` and ``score(d) = Σ w(n)^α · cover(n)``, with
``cover(n) = 1 - β + β · (share of n's tokens that no likelier n-gram of d has)``. Departures: a suffix array in place
of the FM-index, behind the same interface; the tasks' prompts are words of the question, not learned vectors.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

State = TypeVar("State")
SEPARATOR = -1
"""Stands between documents; nothing continues across it."""


class Continuations(Protocol[State]):
    """A set of token sequences, read token by token."""

    def start(self) -> State:
        """Where nothing is written yet."""

    def allowed(self, state: State) -> Sequence[int]:
        """Tokens that continue some sequence."""

    def ends(self, state: State) -> bool:
        """Whether what is written may end here."""

    def step(self, state: State, token_id: int) -> State:
        """After one more token, which must be allowed."""


class PrefixTree:
    """The sequences themselves, such as the names of entities.

    Args:
        sequences: Token ids each, at least one, none of them empty.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        if not sequences or any(not len(sequence) for sequence in sequences):
            raise ValueError("prefix tree: expected sequences of at least one token")
        self._children: list[dict[int, int]] = [{}]
        self._whole: set[int] = set()
        for sequence in sequences:
            node = 0
            for token_id in sequence:
                if token_id not in self._children[node]:
                    self._children.append({})
                    self._children[node][token_id] = len(self._children) - 1
                node = self._children[node][token_id]
            self._whole.add(node)

    def start(self) -> int:
        """The root."""
        return 0

    def allowed(self, state: int) -> Sequence[int]:
        """The children's tokens."""
        return list(self._children[state])

    def ends(self, state: int) -> bool:
        """Whether a sequence ends here."""
        return state in self._whole

    def step(self, state: int, token_id: int) -> int:
        """The child."""
        return self._children[state][token_id]


@dataclass(frozen=True)
class Span:
    """Places that begin with what is written: ``low`` to ``high`` of the suffix array, ``length`` tokens deep."""

    low: int
    high: int
    length: int = 0


class NgramIndex:
    """All n-grams of a corpus: what continues one, how often it occurs, and where.

    A suffix array: every place of the corpus, sorted by the tokens that follow it, so that the places of an n-gram are
    one stretch of it, and its continuations are sorted within that stretch.

    Args:
        documents: Token ids of each document, none of them negative.
    """

    def __init__(self, documents: Sequence[Sequence[int]]) -> None:
        pieces, owners = [], []
        for number, document in enumerate(documents):
            ids = np.asarray([*document, SEPARATOR], dtype=np.int64)
            if (ids[:-1] < 0).any():
                raise ValueError(f"document {number}: expected token ids from 0 on, got {int(ids[:-1].min())}")
            pieces.append(ids)
            owners.append(np.full(len(ids), number))
        if not pieces:
            raise ValueError("n-gram index: expected documents, got none")
        self.text: NDArray[np.int64] = np.concatenate(pieces)
        self.owners: NDArray[np.int64] = np.concatenate(owners)
        self.suffixes = _suffix_array(self.text)
        self.num_documents = len(documents)
        self.num_tokens = len(self.text) - len(documents)

    def start(self) -> Span:
        """Every place."""
        return Span(0, len(self.suffixes))

    def allowed(self, state: Span) -> Sequence[int]:
        """Tokens that follow the n-gram somewhere within a document."""
        following = np.unique(self._following(state))
        return [int(token_id) for token_id in following if token_id != SEPARATOR]

    def ends(self, state: Span) -> bool:
        """Any n-gram may end."""
        return state.length > 0

    def step(self, state: Span, token_id: int) -> Span:
        """The n-gram with one more token; empty if it occurs nowhere."""
        following = self._following(state)
        low, high = np.searchsorted(following, [token_id, token_id + 1])
        return Span(state.low + int(low), state.low + int(high), state.length + 1)

    def find(self, ngram: Sequence[int]) -> Span:
        """The places of an n-gram."""
        state = self.start()
        for token_id in ngram:
            state = self.step(state, token_id)
        return state

    def count(self, ngram: Sequence[int]) -> int:
        """How often an n-gram occurs."""
        span = self.find(ngram)
        return span.high - span.low

    def documents(self, ngram: Sequence[int]) -> list[int]:
        """Documents that hold an n-gram."""
        span = self.find(ngram)
        return [int(owner) for owner in np.unique(self.owners[self.suffixes[span.low : span.high]])]

    def _following(self, state: Span) -> NDArray[np.int64]:
        places = self.suffixes[state.low : state.high] + state.length
        return self.text[np.minimum(places, len(self.text) - 1)]


class PrefixConstraint(Generic[State]):
    """Permits a batch of replies to write sequences of a set alone, each followed by an end.

    A constraint of the decode loop (:class:`inference.decoding.Constraint`).

    Args:
        continuations: The set.
        batch: Number of replies.
        end_id: Ends a sequence.
        max_tokens: Longer sequences must end, where they may.
        again: Whether another sequence may follow; otherwise a reply is over, and only ``end_id`` remains.
    """

    def __init__(
        self,
        continuations: Continuations[State],
        batch: int,
        end_id: int,
        max_tokens: int | None = None,
        again: bool = False,
    ) -> None:
        self.continuations, self.end_id, self.max_tokens, self.again = continuations, end_id, max_tokens, again
        self._states: list[State | None] = [continuations.start() for _ in range(batch)]
        self._lengths = [0] * batch

    def allowed(self, row: int) -> list[int]:
        """Tokens that may come next in a reply."""
        state = self._states[row]
        if state is None:
            return [self.end_id]
        ends = self.continuations.ends(state)
        if ends and self.max_tokens is not None and self._lengths[row] >= self.max_tokens:
            return [self.end_id]
        return [*self.continuations.allowed(state), *([self.end_id] if ends else [])]

    def mask(self, logits: Tensor) -> Tensor:
        """Set the logits (B, V) of all other tokens to -inf."""
        if logits.shape[0] != len(self._states):
            raise ValueError(f"logits: expected {len(self._states)} rows, one per reply, got {logits.shape[0]}")
        masked = torch.full_like(logits, float("-inf"))
        for row in range(len(self._states)):
            index = torch.tensor(self.allowed(row), device=logits.device)
            masked[row, index] = logits[row, index]
        return masked

    def advance(self, token_ids: Sequence[int | None]) -> None:
        """Take the B tokens that were appended, None where a reply has ended.

        Raises:
            ValueError: If a token is not allowed, naming the reply.
        """
        if len(token_ids) != len(self._states):
            raise ValueError(f"token_ids: expected {len(self._states)}, one per reply, got {len(token_ids)}")
        for row, token_id in enumerate(token_ids):
            state = self._states[row]
            if token_id is None or (state is None and token_id == self.end_id):
                continue
            if token_id not in self.allowed(row):
                raise ValueError(f"reply {row}: expected one of the tokens that continue a sequence, got {token_id}")
            assert state is not None
            if token_id == self.end_id:
                self._states[row] = self.continuations.start() if self.again else None
                self._lengths[row] = 0
            else:
                self._states[row] = self.continuations.step(state, token_id)
                self._lengths[row] += 1

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these of the replies, in this order."""
        self._states = [self._states[place] for place in places]
        self._lengths = [self._lengths[place] for place in places]


@dataclass(frozen=True)
class ScoredNgram:
    """An n-gram that was written for a question.

    Args:
        ids: Its tokens.
        log_probability: log p(n|q).
    """

    ids: tuple[int, ...]
    log_probability: float


def score_documents(
    ngrams: Sequence[ScoredNgram], index: NgramIndex, alpha: float = 2.0, beta: float = 0.8, smoothing: float = 5.0
) -> list[tuple[int, float]]:
    """Documents by the n-grams that were written, best first; those that hold none are left out.

    Args:
        ngrams: What was written for one question.
        index: The corpus.
        alpha: Exponent of an n-gram's weight.
        beta: How much of the weight tokens lose that a likelier n-gram of the document has already.
        smoothing: Added to counts.
    """
    held: dict[int, list[tuple[float, tuple[int, ...]]]] = {}
    for ids, log_probability in {item.ids: item.log_probability for item in ngrams}.items():
        weight = ngram_weight(log_probability, index.count(ids), index.num_tokens, smoothing)
        for document in index.documents(ids) if weight else ():
            held.setdefault(document, []).append((weight**alpha, ids))
    scores = {document: _covered(sorted(own, reverse=True), beta) for document, own in held.items()}
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def ngram_weight(log_probability: float, count: int, num_tokens: int, smoothing: float = 5.0) -> float:
    """How much likelier an n-gram is given the question than by itself, as log odds, at least 0."""
    given = min(math.exp(log_probability), 1 - 1e-9)
    alone = min((count + smoothing) / (num_tokens + smoothing), 1 - 1e-9)
    if given <= 0:
        return 0.0
    return max(0.0, math.log(given * (1 - alone) / (alone * (1 - given))))


def _covered(ngrams: Sequence[tuple[float, tuple[int, ...]]], beta: float) -> float:
    """The sum of weights, each less what likelier n-grams have covered of its tokens."""
    seen: set[Hashable] = set()
    total = 0.0
    for weight, ids in ngrams:
        new = len(set(ids) - seen) / len(set(ids))
        total += weight * (1 - beta + beta * new)
        seen.update(ids)
    return total


def _suffix_array(text: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places sorted by what follows them, by doubling: ranks of 2^k tokens give those of 2^(k+1)."""
    ranks = np.unique(text, return_inverse=True)[1].astype(np.int64)
    length, width = len(text), 1
    while True:
        after = np.full(length, -1, dtype=np.int64)
        after[: length - width] = ranks[width:] if width < length else ranks[:0]
        order = np.lexsort((after, ranks))
        first, second = ranks[order], after[order]
        changed = np.concatenate([[False], (first[1:] != first[:-1]) | (second[1:] != second[:-1])])
        numbers = np.cumsum(changed)
        ranks = np.empty_like(numbers)
        ranks[order] = numbers
        width *= 2
        if numbers[-1] == length - 1 or width >= 2 * length:
            return order
