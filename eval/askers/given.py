"""Calls that are given: what a head makes of a conversation, with nothing decoded, such as the vectors of an index."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from eval.askers.asker import Question
from eval.benchmarks.benchmark import Benchmark
from eval.prediction import Prediction, predicted, reference_of
from heads.entity_ranking import EntityRankingHead
from inference.conversation import Reply
from inference.given import answer_given
from inference.session import Session
from layers.calls import Call, EmbeddingResult, Result


def ask_given(session: Session, benchmark: Benchmark, questions: Sequence[Question]) -> list[Prediction | str]:
    """Rows of what the head of the benchmark's task answers when its call is written for the model.

    A call whose prompt is a relation is answered with what an entity's vector becomes under it: the vector that is
    compared with all entities, in the way that the result names as ``compare``.

    Args:
        session: Whose model.
        benchmark: Says which task; see :attr:`eval.benchmarks.benchmark.Benchmark.given`.
        questions: At least one.

    Returns:
        One row per question, or why it cannot be answered; that costs no other question its answer.

    Raises:
        ValueError: If the model has no such task.
    """
    task = str(benchmark.call)
    session.head_of(task)
    started = time.perf_counter()
    rows: list[Prediction | str] = []
    for question, result in zip(questions, _results(session, task, questions), strict=True):
        if isinstance(result, str):
            rows.append(result)
            continue
        try:
            rows.append(_row(session, benchmark, question, result))
        except ValueError as error:
            rows.append(str(error))
    seconds = round((time.perf_counter() - started) / len(questions), 6)
    return [row if isinstance(row, str) else replace(row, timings={"given": seconds}) for row in rows]


def _results(session: Session, task: str, questions: Sequence[Question]) -> list[Result | str]:
    """Answers; a question that cannot be rendered gives its error, and a batch too large for memory is halved."""
    try:
        return list(answer_given(session, [item.conversation for item in questions], Call(task, "")))
    except (ValueError, torch.OutOfMemoryError) as error:
        if len(questions) == 1:
            return [str(error)]
    half = (len(questions) + 1) // 2
    return _results(session, task, questions[:half]) + _results(session, task, questions[half:])


def _row(session: Session, benchmark: Benchmark, question: Question, result: Result) -> Prediction:
    task, head = str(benchmark.call), session.head_of(str(benchmark.call))
    if not isinstance(result, EmbeddingResult):
        raise ValueError(f"task '{task}': expected a vector, got a {type(result).__name__}")
    calls = reference_of(question.sample)["calls"]
    relation = str(calls[0]["prompt"]) if calls else ""
    compare = {}
    if relation:
        if not isinstance(head, EntityRankingHead):
            raise ValueError(f"task '{task}': expected a head that ranks entities, got a {type(head).__name__}")
        with torch.inference_mode():
            query = head.query(result.vector, relation)
        result = EmbeddingResult(replace(result.call, prompt=relation), query.detach().float().cpu())
    if isinstance(head, EntityRankingHead):
        compare = {"compare": "l1" if head.relations.model == "transe" else "dot"}
    reply = Reply("", (result.call,), (result,), (), (), "", "stop", {})
    row = predicted(benchmark.name, question.sample, question.conversation, question.media, reply)
    return replace(row, results=[{**(row.results[0] or {}), **compare}])
