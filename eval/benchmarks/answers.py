"""Benchmarks whose answer is text, a label, a probability, or which calls were made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from eval.benchmarks.benchmark import FAILED_IS_WRONG, answers_with, majority, meta_part, says
from eval.benchmarks.shards import ShardBenchmark
from eval.call_results import ResultJudge
from eval.metrics.ranking import roc_auc
from eval.metrics.routing import RATES, count_right_calls, routing_rate
from eval.metrics.statistics import Score
from eval.metrics.text import exact_match, normalise_answer, word_error_rate, word_errors
from eval.prediction import HEAD_ERROR, Prediction
from eval.tally import Tally

NO_CALLS = "[]"
ROUTING_PROTOCOL = (
    "micro-averaged over calls; a call is right when task, place in the reply, prompt and number of groundings "
    "match; every call of a reply that does not parse or is cut is wrong, a malformed call counts as "
    "predicted; n counts replies; standard error bootstrapped over replies"
)
FAILURE_PROTOCOL = (
    "share of routing replies that hold a malformed call or one of an unavailable task, or are cut at the length "
    "limit; the parts are other benchmarks of the same run"
)
TWO_CALLS_PROTOCOL = (
    "share of the replies to orders of two things whose calls are right and whose results are both right: a box or a "
    "mask with IoU >= 0.5, a drawing or an edit as their own benchmarks judge it, an edit of what the first call made "
    f"by what it does to that; {FAILED_IS_WRONG}"
)


class AnswerBenchmark(ShardBenchmark):
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

    def score(self, predictions: Iterable[Prediction]) -> dict[str, Score]:
        """Accuracy; see the class."""
        tally, part = Tally(), meta_part(self.part)
        for row in predictions:
            tally.put(row.key, cluster_name(row, self.cluster), [float(self.right(row))], [part(row)])
        protocol = f"exact match after lower-casing and dropping end punctuation; {FAILED_IS_WRONG}"
        if self.macro:
            protocol = f"unweighted mean over {tally.num_parts} question types of {protocol}"
        if self.cluster is not None:
            protocol += f"; standard error clustered by {self.cluster}"
        return {self.metrics[0]: tally.macro_mean(protocol) if self.macro else tally.mean(protocol)}

    def right(self, prediction: Prediction) -> bool:
        """Whether a reply that parses matches the answer."""
        return not prediction.failed and exact_match(prediction.text, prediction.answer)

    def constant(self, prediction: Prediction) -> Prediction:
        """Each question type's most frequent validation answer."""
        best, fallback = self._best
        return says(prediction, best.get(meta_part("question_type")(prediction), fallback))

    @cached_property
    def _best(self) -> tuple[dict[str, str], str]:
        answers: dict[str, list[str]] = {}
        kind = meta_part("question_type")
        for row in self.validation:
            answers.setdefault(kind(row), []).append(normalise_answer(row.answer))
        best = {name: majority(own) for name, own in answers.items()}
        return best, majority(answer for own in answers.values() for answer in own)


class TranscriptBenchmark(ShardBenchmark):
    """Corpus word error rate of the reply against ``meta.transcript``."""

    def score(self, predictions: Iterable[Prediction]) -> dict[str, Score]:
        """Word error rate, with parts by language and by voice."""
        tally = Tally(2)
        for row in predictions:
            edits, words = word_errors("" if row.failed else row.text, _transcript(row))
            parts = [f"{entry}: {row.meta.get(entry, 'other')}" for entry in ("language", "voice")]
            tally.add(row, edits, words, parts=parts)
        protocol = (
            "corpus level, edits over reference words (jiwer), case-sensitive, no normaliser but white space; "
            "free-running on voices that training never heard; a reply that does not parse or is cut counts as empty; "
            f"standard error bootstrapped over utterances; {tally.num_parts} parts by language and voice"
        )
        return {self.metrics[0]: tally.ratio(protocol, higher_is_better=False)}

    def right(self, prediction: Prediction) -> bool:
        """Whether there is no error in a reply that parses."""
        return not prediction.failed and word_errors(prediction.text, _transcript(prediction))[0] == 0

    def constant(self, prediction: Prediction) -> Prediction:
        """Silence, or the most frequent validation transcript if that makes fewer errors there."""
        return says(prediction, self._best)

    @cached_property
    def _best(self) -> str:
        references = [_transcript(row) for row in self.validation]
        options = ["", majority(references)]
        return min(options, key=lambda text: word_error_rate([text] * len(references), references).value)


class LabelBenchmark(ShardBenchmark):
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

    def score(self, predictions: Iterable[Prediction]) -> dict[str, Score]:
        """Accuracy, with parts by the true label."""
        tally = Tally()
        for row in predictions:
            cluster = cluster_name(row, self.cluster)
            tally.put(row.key, cluster, [float(self.right(row))], [str(row.target("label"))])
        protocol = (
            f"label of the head's first answer; {FAILED_IS_WRONG}, a missing call is wrong; "
            f"standard error clustered by {self.cluster}"
        )
        return {self.metrics[0]: tally.mean(protocol)}

    def right(self, prediction: Prediction) -> bool:
        """Whether the head's label is the target."""
        return bool((prediction.first_result("label") or {}).get("label") == prediction.target("label"))

    def constant(self, prediction: Prediction) -> Prediction:
        """The most frequent validation label."""
        return answers_with(prediction, {"type": "label", "label": self._best, "probabilities": {}})

    @cached_property
    def _best(self) -> str:
        return majority(str(row.target("label")) for row in self.validation)


class LinkBenchmark(LabelBenchmark):
    """Area under the ROC curve of a head's probability against the reference call's score target (0 or 1)."""

    call = "link"

    def score(self, predictions: Iterable[Prediction]) -> dict[str, Score]:
        """AUC; a missing probability is the worst one: 0 for a positive, 1 for a negative."""
        tally, accuracy = Tally(2), Tally()
        for row in predictions:
            positive, result = float(row.target("score")) >= 0.5, row.first_result("score")
            value = (0.0 if positive else 1.0) if result is None else float(result["score"])
            tally.put(row.key, cluster_name(row, self.cluster), [value, float(positive)])
            accuracy.put(row.key, row.key, [float((value >= 0.5) == positive)], ["accuracy at 0.5"])
        protocol = (
            "area under the ROC curve of the head's probability, ties count half; free-running; without a probability "
            "(no call, or a reply that does not parse) a positive counts as 0 and a negative as 1; standard error "
            f"bootstrapped over {self.cluster}"
        )
        score = tally.statistic(lambda rows: roc_auc(rows[:, 0].tolist(), (rows[:, 1] > 0).tolist()), protocol)
        score.parts.update(accuracy.mean("").parts)
        return {self.metrics[0]: score}

    def right(self, prediction: Prediction) -> bool:
        """Whether the probability lies on the right side of one half."""
        result = prediction.first_result("score")
        return result is not None and (result["score"] >= 0.5) == (float(prediction.target("score")) >= 0.5)

    def constant(self, prediction: Prediction) -> Prediction:
        """One probability for all."""
        return answers_with(prediction, {"type": "score", "score": 0.5})


class RoutingBenchmark(ShardBenchmark):
    """Precision, recall and F1 of calls, how many replies do not parse, and replies of two calls from end to end."""

    def score(self, predictions: Iterable[Prediction]) -> dict[str, Score]:
        """``routing_precision``, ``routing_recall``, ``routing_f1``, ``parse_failure`` and ``two_calls``."""
        counts, exact, failures = Tally(3), Tally(), Tally()
        both, apart = Tally(), {name: Tally() for name in ("both calls", "first result", "second result")}
        for row in predictions:
            counts.add(row, *count_calls(row))
            number = f"all calls of the reply right, {len(row.reference['calls'])} expected"
            exact.add(row, float(self.right(row)), parts=[number])
            failures.add(row, float(row.failed))
            if len(row.reference["calls"]) == 2 and self.judge_of_results.judges(row):
                first, second = self.judge_of_results.right(row)
                is_routed = self.right(row)
                tasks = ", then ".join(call["task"] for call in row.reference["calls"])
                both.add(row, float(is_routed and first and second), parts=[tasks])
                for own, right in zip(apart.values(), (is_routed, first, second), strict=True):
                    own.add(row, float(right))
        scores = {}
        for name in RATES:
            scores[f"routing_{name}"] = counts.statistic(partial(routing_rate, name=name), ROUTING_PROTOCOL)
        scores["routing_f1"].parts.update(exact.mean("").parts)
        scores["parse_failure"] = failures.mean(FAILURE_PROTOCOL, higher_is_better=False)
        scores["two_calls"] = _two_calls(both, apart)
        return scores

    @cached_property
    def judge_of_results(self) -> ResultJudge:
        """Judges the results of each call."""
        return ResultJudge(self.data, self.records)

    def right(self, prediction: Prediction) -> bool:
        """Whether the reply makes the expected calls and no other."""
        right, made, expected = count_calls(prediction)
        return not prediction.failed and right == made == expected

    def constant(self, prediction: Prediction) -> Prediction:
        """The most frequent non-empty set of calls of the validation split: calling nothing has an F1 of 0."""
        return replace(says(prediction, ""), calls=self._best)

    @cached_property
    def _best(self) -> list[dict[str, Any]]:
        made = [_calls_json(row.reference["calls"]) for row in self.validation]
        calls: list[dict[str, Any]] = json.loads(majority(item for item in made if item != NO_CALLS))
        return calls


def _two_calls(both: Tally, apart: Mapping[str, Tally]) -> Score:
    if not len(both):
        na = "no question asks for two calls with results"
        return Score(float("nan"), 0, None, TWO_CALLS_PROTOCOL, na=na)
    score = both.mean(TWO_CALLS_PROTOCOL)
    score.parts.update({name: own.mean("") for name, own in apart.items()})
    return score


def cluster_name(row: Prediction, entry: str | None) -> str:
    """The value of a meta entry that makes clusters; a sample without the entry is its own cluster."""
    return row.cluster if entry is None else json.dumps(row.meta.get(entry, row.key), sort_keys=True)


def count_calls(row: Prediction) -> tuple[int, int, int]:
    """(right, predicted, expected) calls of a reply."""
    expected = row.reference["calls"]
    malformed = sum(error["kind"] != HEAD_ERROR for error in row.errors)
    return 0 if row.failed else count_right_calls(row.calls, expected), len(row.calls) + malformed, len(expected)


def _transcript(row: Prediction) -> str:
    return str(row.meta.get("transcript", row.answer))


def _calls_json(calls: Sequence[Mapping[str, Any]]) -> str:
    kept = [{name: call[name] for name in ("task", "prompt", "groundings")} for call in calls]
    for call in kept:
        call["groundings"] = [{"type": item["type"]} for item in call["groundings"]]
    return json.dumps(kept, sort_keys=True)
