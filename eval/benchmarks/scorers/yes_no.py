"""POPE and MME."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from eval.benchmarks.metric import Answered, Metric
from eval.metrics.answers.yes_no import MME_COGNITION, MME_PERCEPTION, parse_yes_no
from eval.metrics.statistics import Score
from eval.tally import Reduce, Tally

_SAYS, _MEANS, _BOTH, _RIGHT, _STRICT_RIGHT, _UNKNOWN, _SPLIT = range(7)


class PopeScores(Metric):
    """F1 of "yes" as the mean over POPE's samplings, and the rates beside it.

    ``strict`` counts a reply that does not begin with yes or no as wrong, and ``unknown`` says how many those are: the
    official parser takes all of them for a yes.

    Args:
        part: Entry of the meta with the sampling.
    """

    names = ("f1", "accuracy", "precision", "recall", "yes_ratio", "strict", "unknown")

    def __init__(self, part: str = "category") -> None:
        self.part = part

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """The rates over all samples, but ``f1``, which is the mean over samplings."""
        tally = Tally(7)
        codes: dict[str, int] = {}
        for item in answers:
            gold, answer = item.row.answer == "yes", item.answer.value if item.answer.parsed else None
            strict = parse_yes_no(item.row.text) if item.answer.parsed else None
            part = str(item.row.meta.get(self.part, "all"))
            says = answer == "yes"
            columns = (
                says,
                gold,
                says and gold,
                answer is not None and says == gold,
                strict is not None and (strict == "yes") == gold,
                strict is None,
                codes.setdefault(part, len(codes)),
            )
            tally.add(item.row, *map(float, columns), parts=[f"{self.part}: {part}"])
        parser = "read as POPE's script does: no if the first sentence says no or not, else yes"
        words: dict[str, tuple[Reduce, str, bool]] = {
            "f1": (_mean_f1, f"F1 of yes, mean over {len(codes)} samplings; {parser}", True),
            "accuracy": (_column(_RIGHT), f"accuracy; {parser}", True),
            "precision": (_precision, f"precision of yes; {parser}", True),
            "recall": (_recall, f"recall of yes; {parser}", True),
            "yes_ratio": (_column(_SAYS), f"share of answers that are yes; {parser}", False),
            "strict": (_column(_STRICT_RIGHT), "accuracy of replies that begin with yes or no; others are wrong", True),
            "unknown": (_column(_UNKNOWN), "share of replies that begin with neither yes nor no", False),
        }
        return {
            name: tally.statistic(reduce, text, higher_is_better=better)
            for name, (reduce, text, better) in words.items()
        }

    def right(self, answered: Answered) -> bool:
        """Whether the answer is the gold."""
        return answered.answer.parsed and answered.answer.value == answered.row.answer


class MmeScores(Metric):
    """MME's sums over subtasks of accuracy% + accuracy+%: at most 2,000 for perception and 800 for cognition."""

    names = ("perception", "cognition")

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """The sums, with the subtasks as parts; n counts questions."""
        images: dict[str, list[int]] = {}
        counts = dict.fromkeys(self.names, 0)
        for item in answers:
            seen = images.setdefault(str(item.row.meta["image"]), [0, 0])
            seen[0] += 1
            seen[1] += self.right(item)
            counts["cognition" if item.row.meta["subtask"] in MME_COGNITION else "perception"] += 1
        scores = {}
        for name, subtasks in (("perception", MME_PERCEPTION), ("cognition", MME_COGNITION)):
            tally = Tally(4)
            halves = 0
            for image, (asked, right) in images.items():
                subtask = image.split("/")[0]
                if subtask in subtasks:
                    halves += asked != 2
                    columns = (float(subtasks.index(subtask)), float(asked), float(right), float(asked == right == 2))
                    tally.put(image, image, columns, parts=[subtask])
            missing = f"; {halves} images have one answer only and no accuracy+" if halves else ""
            words = (
                f"sum over {len(subtasks)} subtasks of 100 x (accuracy + share of images with both answers right); "
                f"the first four characters of a reply count{missing}"
            )
            if len(tally):
                scores[name] = replace(tally.statistic(_mme, words, corpus=True), n=sum(counts.values()))
            else:
                scores[name] = Score(float("nan"), 0, None, words, na=f"no {name} subtask was asked")
        return scores

    def right(self, answered: Answered) -> bool:
        """Whether the answer is the gold."""
        return answered.answer.parsed and answered.answer.value == answered.row.meta["gold"]


def _column(place: int) -> Reduce:
    return lambda rows: float(rows[:, place].mean())


def _f1(rows: NDArray[np.float64]) -> float:
    total = rows[:, _SAYS].sum() + rows[:, _MEANS].sum()
    return float(2 * rows[:, _BOTH].sum() / total) if total else 0.0


def _mean_f1(rows: NDArray[np.float64]) -> float:
    return float(np.mean([_f1(rows[rows[:, _SPLIT] == code]) for code in np.unique(rows[:, _SPLIT])]))


def _precision(rows: NDArray[np.float64]) -> float:
    said = rows[:, _SAYS].sum()
    return float(rows[:, _BOTH].sum() / said) if said else 0.0


def _recall(rows: NDArray[np.float64]) -> float:
    meant = rows[:, _MEANS].sum()
    return float(rows[:, _BOTH].sum() / meant) if meant else 0.0


def _mme(rows: NDArray[np.float64]) -> float:
    total = 0.0
    for code in np.unique(rows[:, 0]):
        own = rows[rows[:, 0] == code]
        total += 100 * (own[:, 2].sum() / own[:, 1].sum() + own[:, 3].mean())
    return float(total)
