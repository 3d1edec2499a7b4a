"""Benchmarks whose answer is text, a label, a probability, or which calls were made."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.benchmarks.benchmark import (
    FAILED_IS_WRONG,
    Benchmark,
    answers_with,
    majority,
    meta_part,
    part_means,
    says,
    score_values,
)
from eval.metrics.ranking import auc_estimate
from eval.metrics.routing import count_right_calls, routing_estimates
from eval.metrics.statistics import Score, macro_mean
from eval.metrics.text import exact_match, normalise_answer, word_error_rate, word_errors
from eval.prediction import HEAD_ERROR, Prediction

NO_CALLS = "[]"


class AnswerBenchmark(Benchmark):
    """Exact match of short answers.

    Args:
        name: Prefix of its shards.
        metric: Name of its metric.
        data: The data directory.
        split: Which split is asked.
        without: Control -> why it is not measured.
        macro: The metric is the unweighted mean over question types instead of the mean over samples.
        part: Entry of the meta that makes the parts; the constant control never sees it, only the question type.
        cluster: Entry of the meta whose values make dependent samples.
    """

    def __init__(
        self,
        name: str,
        metric: str,
        data: str | Path,
        split: str = "test",
        without: Mapping[str, str] | None = None,
        *,
        macro: bool = False,
        part: str = "question_type",
        cluster: str | None = None,
    ) -> None:
        super().__init__(name, [metric], data, split, without)
        self.macro, self.part, self.cluster = macro, part, cluster

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Score]:
        """Accuracy; see the class."""
        values = [float(self.right(row)) for row in predictions]
        clusters = cluster_names(predictions, self.cluster)
        protocol = f"exact match after lower-casing and dropping end punctuation; {FAILED_IS_WRONG}"
        parts = part_means(predictions, values, meta_part(self.part), clusters)
        if self.macro:
            whole = macro_mean(list(parts.values()))
            protocol = f"unweighted mean over {len(parts)} question types of {protocol}"
        else:
            whole = part_means(predictions, values, lambda _: "all", clusters)["all"]
        if self.cluster is not None:
            protocol += f"; standard error clustered by {self.cluster}"
        return {self.metrics[0]: Score(whole.value, whole.n, whole.stderr, protocol, parts)}

    def right(self, prediction: Prediction) -> bool:
        """Whether a reply that parses matches the answer."""
        return not prediction.failed and exact_match(prediction.text, prediction.answer)

    def constant(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """Each question type's most frequent validation answer."""
        answers: dict[str, list[str]] = {}
        kind = meta_part("question_type")
        for row in self.validation:
            answers.setdefault(kind(row), []).append(normalise_answer(row.answer))
        best = {name: majority(own) for name, own in answers.items()}
        fallback = majority(answer for own in answers.values() for answer in own)
        return [says(row, best.get(kind(row), fallback)) for row in predictions]


class TranscriptBenchmark(Benchmark):
    """Corpus word error rate of the reply against ``meta.transcript``."""

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Score]:
        """Word error rate, with parts by language and by voice."""
        hypotheses = ["" if row.failed else row.text for row in predictions]
        references = [_transcript(row) for row in predictions]
        whole = word_error_rate(hypotheses, references)
        parts = {}
        for entry in ("language", "voice"):
            groups: dict[str, list[int]] = {}
            for index, row in enumerate(predictions):
                groups.setdefault(f"{entry}: {row.meta.get(entry, 'other')}", []).append(index)
            for name, own in groups.items():
                parts[name] = word_error_rate([hypotheses[i] for i in own], [references[i] for i in own])
        protocol = (
            "corpus level, edits over reference words (jiwer), case-sensitive, no normaliser but white space; "
            "free-running on voices that training never heard; a reply that does not parse or is cut counts as empty; "
            f"standard error bootstrapped over utterances; {len(parts)} parts by language and voice"
        )
        return {self.metrics[0]: Score(whole.value, whole.n, whole.stderr, protocol, parts)}

    def right(self, prediction: Prediction) -> bool:
        """Whether there is no error in a reply that parses."""
        return not prediction.failed and word_errors(prediction.text, _transcript(prediction))[0] == 0

    def constant(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """Silence, or the most frequent validation transcript if that makes fewer errors there."""
        references = [_transcript(row) for row in self.validation]
        options = ["", majority(references)]
        best = min(options, key=lambda text: word_error_rate([text] * len(references), references).value)
        return [says(row, best) for row in predictions]


class LabelBenchmark(Benchmark):
    """Accuracy of a head's label against the reference call's label target.

    Args:
        name: Prefix of its shards.
        metric: Name of its metric.
        data: The data directory.
        split: Which split is asked.
        without: Control -> why it is not measured.
        cluster: Entry of the meta whose values make dependent samples.
    """

    call = "node_class"

    def __init__(
        self,
        name: str,
        metric: str,
        data: str | Path,
        split: str = "test",
        without: Mapping[str, str] | None = None,
        *,
        cluster: str,
    ) -> None:
        super().__init__(name, [metric], data, split, without)
        self.cluster = cluster

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Score]:
        """Accuracy, with parts by the true label."""
        names = cluster_names(predictions, self.cluster)
        by_key = dict(zip((row.key for row in predictions), names or (), strict=True))
        score = score_values(
            predictions,
            lambda row: float(self.right(row)),
            f"label of the head's first answer; {FAILED_IS_WRONG}, a missing call is wrong; "
            f"standard error clustered by {self.cluster}",
            part=lambda row: str(row.target("label")),
            cluster=lambda row: by_key[row.key],
        )
        return {self.metrics[0]: score}

    def right(self, prediction: Prediction) -> bool:
        """Whether the head's label is the target."""
        return bool((prediction.first_result("label") or {}).get("label") == prediction.target("label"))

    def constant(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """The most frequent validation label."""
        label = majority(str(row.target("label")) for row in self.validation)
        return [answers_with(row, {"type": "label", "label": label, "probabilities": {}}) for row in predictions]


class LinkBenchmark(LabelBenchmark):
    """Area under the ROC curve of a head's probability against the reference call's score target (0 or 1)."""

    call = "link"

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Score]:
        """AUC; a missing probability is the worst one: 0 for a positive, 1 for a negative."""
        positives = [float(row.target("score")) >= 0.5 for row in predictions]
        scores = []
        for row, positive in zip(predictions, positives, strict=True):
            result = row.first_result("score")
            scores.append((0.0 if positive else 1.0) if result is None else float(result["score"]))
        estimate = auc_estimate(scores, positives, cluster_names(predictions, self.cluster))
        hits = [float((value >= 0.5) == positive) for value, positive in zip(scores, positives, strict=True)]
        accuracy = part_means(predictions, hits, lambda _: "accuracy at 0.5")
        protocol = (
            "area under the ROC curve of the head's probability, ties count half; free-running; without a probability "
            "(no call, or a reply that does not parse) a positive counts as 0 and a negative as 1; standard error "
            f"bootstrapped over {self.cluster}"
        )
        return {self.metrics[0]: Score(estimate.value, estimate.n, estimate.stderr, protocol, accuracy)}

    def right(self, prediction: Prediction) -> bool:
        """Whether the probability lies on the right side of one half."""
        result = prediction.first_result("score")
        return result is not None and (result["score"] >= 0.5) == (float(prediction.target("score")) >= 0.5)

    def constant(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """One probability for all."""
        return [answers_with(row, {"type": "score", "score": 0.5}) for row in predictions]


class RoutingBenchmark(Benchmark):
    """Precision, recall and F1 of calls, and how many replies do not parse."""

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Score]:
        """``routing_precision``, ``routing_recall``, ``routing_f1`` and ``parse_failure``."""
        counts = [_count_calls(row) for row in predictions]
        exact = [float(self.right(row)) for row in predictions]
        by_number = part_means(
            predictions, exact, lambda row: f"all calls of the reply right, {len(row.reference['calls'])} expected"
        )
        protocol = (
            "micro-averaged over calls; a call is right when task, place in the reply, prompt and number of groundings "
            "match; every call of a reply that does not parse or is cut is wrong, a malformed call counts as "
            "predicted; n counts replies; standard error bootstrapped over replies"
        )
        scores = {}
        for name, estimate in routing_estimates(counts).items():
            parts = by_number if name == "f1" else {}
            scores[f"routing_{name}"] = Score(estimate.value, estimate.n, estimate.stderr, protocol, parts)
        scores["parse_failure"] = failure_score(predictions)
        return scores

    def right(self, prediction: Prediction) -> bool:
        """Whether the reply makes the expected calls and no other."""
        right, made, expected = _count_calls(prediction)
        return not prediction.failed and right == made == expected

    def constant(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """The most frequent non-empty set of calls of the validation split: calling nothing has an F1 of 0."""
        made = [_calls_json(row.reference["calls"]) for row in self.validation]
        calls = json.loads(majority(item for item in made if item != NO_CALLS))
        return [replace(says(row, ""), calls=calls) for row in predictions]


def failure_score(predictions: Sequence[Prediction]) -> Score:
    """Share of replies with a malformed or unavailable call, or cut at the length limit."""
    return score_values(
        predictions,
        lambda row: float(row.failed),
        "share of routing replies that hold a malformed call or one of an unavailable task, or are cut at the length "
        "limit; the parts are other benchmarks of the same run",
    )


def cluster_names(predictions: Sequence[Prediction], entry: str | None) -> list[Hashable] | None:
    """The values of a meta entry that make clusters; a sample without the entry is its own cluster."""
    if entry is None:
        return None
    return [json.dumps(row.meta.get(entry, row.key), sort_keys=True) for row in predictions]


def _transcript(row: Prediction) -> str:
    return str(row.meta.get("transcript", row.answer))


def _count_calls(row: Prediction) -> tuple[int, int, int]:
    """(right, predicted, expected) calls of a reply."""
    expected = row.reference["calls"]
    malformed = sum(error["kind"] != HEAD_ERROR for error in row.errors)
    return 0 if row.failed else count_right_calls(row.calls, expected), len(row.calls) + malformed, len(expected)


def _calls_json(calls: Sequence[Mapping[str, Any]]) -> str:
    kept = [{name: call[name] for name in ("task", "prompt", "groundings")} for call in calls]
    for call in kept:
        call["groundings"] = [{"type": item["type"]} for item in call["groundings"]]
    return json.dumps(kept, sort_keys=True)
