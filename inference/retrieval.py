"""Documents for questions: n-grams of the corpus by constrained beam search, and what they say of the documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.render import render_prompt
from inference.conversation import Conversation
from inference.encoding import PromptReader, media_keys
from inference.reading.fused import choose_reader
from models.generalist import Generalist
from routers.retrieve import Continuations, NgramIndex, PrefixConstraint, ScoredNgram, score_documents


@dataclass(frozen=True)
class Found:
    """A document for a question.

    Args:
        document: Its number in the corpus.
        score: Of the n-grams that it holds.
    """

    document: int
    score: float


class NgramRetriever:
    """Retrieves documents with the n-grams that a Generalist writes for a question.

    Args:
        generalist: The model; its reply to a question is an n-gram of a document that answers it.
        index: The corpus, in the model's tokens.
        beams: N-grams that are followed at a time.
        length: Tokens of the longest n-gram.
        alpha: See :func:`routers.retrieve.score_documents`.
        beta: Likewise.
        smoothing: Likewise.
    """

    def __init__(
        self,
        generalist: Generalist,
        index: NgramIndex,
        beams: int = 8,
        length: int = 8,
        alpha: float = 2.0,
        beta: float = 0.8,
        smoothing: float = 5.0,
    ) -> None:
        if beams < 1 or length < 1:
            raise ValueError(f"beams, length: expected at least 1 each, got {beams} and {length}")
        self.generalist, self.index, self.beams, self.length = generalist, index, beams, length
        self.alpha, self.beta, self.smoothing = alpha, beta, smoothing

    def retrieve(self, questions: Sequence[Conversation], count: int = 10) -> list[list[Found]]:
        """The documents for each question, best first, at most so many."""
        written = beam_search(self.generalist, questions, self.index, self.beams, self.length)
        ranked = [score_documents(item, self.index, self.alpha, self.beta, self.smoothing) for item in written]
        return [[Found(*item) for item in own[:count]] for own in ranked]


@torch.inference_mode()
def beam_search(
    generalist: Generalist,
    questions: Sequence[Conversation],
    continuations: Continuations[object] | NgramIndex,
    beams: int,
    length: int,
) -> list[list[ScoredNgram]]:
    """The likeliest sequences of a set for each question.

    Every beginning that a beam has gone through is one of them where the set lets it end, with its own probability: of
    an n-gram those of its tokens, and that of the end too where a sequence is a whole (:class:`PrefixTree`).

    Args:
        generalist: The model, in evaluation mode.
        questions: One or more.
        continuations: The set.
        beams: Beginnings that are followed at a time, per question.
        length: Tokens of the longest.
    """
    if not questions:
        return []
    plan, device = generalist.plan(), generalist.device
    rendered = [render_prompt(item.messages, item.media, plan, item.written) for item in questions]
    keys = [media_keys(item) for item in rendered]
    prompts = PromptReader(generalist, plan.max_frames).read(rendered, keys, [item.media for item in questions])
    rows = [torch.tensor(item.input_ids, device=device) for item in rendered]
    conditions = generalist.conditions(rows, [torch.tensor(item.instruction, device=device) for item in rendered])
    reader, _ = choose_reader(generalist)
    reading = reader.read([prompt.embeds for prompt in prompts], [None] * len(prompts), conditions, length)
    beam = _Beam(generalist, continuations, len(questions), beams, plan.vocabulary.eos_id)
    for step in range(length):
        parents, tokens = beam.extend(reading.logits)
        if not tokens or step + 1 == length:
            break
        reading.keep(parents)
        reading.append(tokens)
    return beam.found


class _Beam:
    """The beginnings that are followed, question by question; their rows are those of the reading."""

    def __init__(
        self,
        generalist: Generalist,
        continuations: Continuations[object] | NgramIndex,
        num_questions: int,
        beams: int,
        end_id: int,
    ) -> None:
        self.continuations, self.beams, self.end_id = continuations, beams, end_id
        self.constraint: PrefixConstraint[Any] = PrefixConstraint(continuations, num_questions, end_id)
        self.owners = list(range(num_questions))
        self.ids: list[tuple[int, ...]] = [()] * num_questions
        self.scores = torch.zeros(num_questions, device=generalist.device)
        self.found: list[list[ScoredNgram]] = [[] for _ in range(num_questions)]
        self.wholes = not isinstance(continuations, NgramIndex)

    def extend(self, logits: Tensor) -> tuple[list[int], list[int]]:
        """Follow the likeliest continuations: (rows that they come from, their tokens)."""
        log_probabilities = logits.float().log_softmax(-1)
        allowed = self.constraint.mask(log_probabilities)
        if self.wholes:
            self._end(self.scores + allowed[:, self.end_id])
        allowed[:, self.end_id] = float("-inf")
        totals = self.scores[:, None] + allowed
        parents, tokens, scores = list[int](), list[int](), list[Tensor]()
        for question in dict.fromkeys(self.owners):
            rows = [row for row, owner in enumerate(self.owners) if owner == question]
            own = totals[rows].flatten()
            best, places = own.topk(min(self.beams, len(own)))
            kept = best.isfinite()
            for place in places[kept].tolist():
                parents.append(rows[place // totals.shape[1]])
                tokens.append(place % totals.shape[1])
            scores.append(best[kept])
        self.scores = torch.cat(scores) if scores else self.scores[:0]
        self.owners = [self.owners[row] for row in parents]
        self.ids = [(*self.ids[row], token) for row, token in zip(parents, tokens, strict=True)]
        self.constraint.keep(parents)
        self.constraint.advance(tokens)
        if not self.wholes:
            self._end(self.scores)
        return parents, tokens

    def _end(self, scores: Tensor) -> None:
        for owner, ids, score in zip(self.owners, self.ids, scores.tolist(), strict=True):
            if ids and score > float("-inf"):
                self.found[owner].append(ScoredNgram(ids, score))
