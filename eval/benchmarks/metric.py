"""Metrics of catalogue rows: from answers to scores in one pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from eval.benchmarks.answer import Answer
from eval.benchmarks.benchmark import majority, says
from eval.judges.judge import Judge
from eval.metrics.statistics import Score
from eval.metrics.text import exact_match
from eval.prediction import Prediction
from eval.tally import Tally


@dataclass(frozen=True)
class Answered:
    """A prediction with what was read from it.

    Args:
        row: The prediction; ``row.meta`` and ``row.reference`` hold what is right.
        answer: What the row's parser read; where it read nothing, the sample scores 0 (of a rate of errors: counts as
            an empty answer).
    """

    row: Prediction
    answer: Answer


class Metric(ABC):
    """Scores answers. Constructed from a catalogue row's ``init_args``.

    Attributes:
        names: Of its numbers; the benchmark's name is put before them.
        needs_judge: Whether it asks :attr:`judge`; without one its numbers are n/a.
        judge: Set by whoever scores; never chosen by a row.
        chooses_constant: Whether :meth:`constant` looks at references; if not, its reply is fixed beforehand.
    """

    names: tuple[str, ...] = ()
    needs_judge: bool = False
    chooses_constant: bool = True
    judge: Judge | None = None

    @abstractmethod
    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """Score in one pass, holding no answer longer than its numbers need; see :class:`eval.tally.Tally`.

        Args:
            answers: At least one; a stream.

        Returns:
            Name -> score, for every one of :attr:`names`.
        """

    @abstractmethod
    def right(self, answered: Answered) -> bool:
        """Whether an example counts as right when it is shown."""

    def constant(self, rows: Iterable[Prediction]) -> Callable[[Prediction], Prediction]:
        """From a prediction to the same one answered by the best constant reply.

        Args:
            rows: References to choose it by, as predictions that say nothing.
        """
        text = majority(str(row.reference["text"]) for row in rows)
        return lambda row: says(row, text)


class MeanMetric(Metric):
    """The mean over samples of one number each, with parts by entries of the meta.

    Subclasses give :meth:`value`, ``names`` of one, and :attr:`protocol`.

    Args:
        parts: Entries of the items' meta that the score is broken down by.
    """

    protocol: str = ""
    threshold: float = 0.5
    """From where on an example is shown as right."""

    def __init__(self, parts: Sequence[str] = ()) -> None:
        self.parts = tuple(parts)

    @abstractmethod
    def value(self, answered: Answered) -> float:
        """The number of a sample whose answer was parsed; others count 0."""

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """The mean."""
        tally = Tally()
        for item in answers:
            tally.add(item.row, self._value(item), parts=parts_of(item.row, self.parts))
        return {self.names[0]: tally.mean(self.protocol)}

    def right(self, answered: Answered) -> bool:
        """Whether its number reaches the threshold."""
        return self._value(answered) >= self.threshold

    def _value(self, answered: Answered) -> float:
        return self.value(answered) if answered.answer.parsed else 0.0


class ExactMatch(MeanMetric):
    """Accuracy after lower-casing and dropping end punctuation, against ``meta.answers`` or the gold reply."""

    names = ("accuracy",)
    protocol = "exact match after lower-casing and dropping end punctuation"

    def value(self, answered: Answered) -> float:
        """1 for a match."""
        accepted = answered.row.meta.get("answers") or [answered.row.answer]
        return float(exact_match(str(answered.answer.value), [str(item) for item in accepted]))


def parts_of(row: Prediction, entries: Iterable[str]) -> list[str]:
    """``ENTRY: VALUE`` for each entry of the meta that the row has; a list gives one part per element."""
    found = []
    for entry in entries:
        value = row.meta.get(entry)
        values = value if isinstance(value, list) else [] if value is None else [value]
        found += [f"{entry}: {item}" for item in values]
    return found
