"""Metrics that a judge decides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from eval.benchmarks.metric import Answered, Metric, parts_of
from eval.judges.judge import NO_JUDGE, Template
from eval.metrics.statistics import Score
from eval.tally import Tally

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")
_CHUNK = 64


class JudgedGrade(Metric):
    """The mean grade that a judge gives, between 0 and 1; without a judge there is none.

    A reply that could not be parsed is graded 0 unasked. If single verdicts are missing (time-outs), the score is n/a
    and says how many; verdicts that came are remembered, and scoring again asks for the rest.

    Args:
        template: What the judge is asked; may name ``{question}``, ``{answer}``, ``{reply}`` and entries of the meta.
        lowest: Grade that counts as 0; the last number in a verdict is the grade.
        highest: Grade that counts as 1.
        parts: Entries of the items' meta that the score is broken down by.
        threshold: From which grade on an example is shown as right.
    """

    names = ("grade",)
    needs_judge = True

    def __init__(
        self,
        template: str,
        lowest: float = 0.0,
        highest: float = 1.0,
        parts: Sequence[str] = (),
        threshold: float = 0.5,
    ) -> None:
        if highest <= lowest:
            raise ValueError(f"expected a highest grade above the lowest, got {lowest} to {highest}")
        self.template, self.lowest, self.highest = Template(template), lowest, highest
        self.parts, self.threshold = tuple(parts), threshold

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """The mean grade."""
        protocol = f"mean grade of the judge {self.judge.identity if self.judge else '(none)'}"
        stream = iter(answers)
        if self.judge is None:
            count = sum(1 for _ in stream)
            return {self.names[0]: Score(float("nan"), count, None, protocol, na=NO_JUDGE)}
        tally, errors, missing = Tally(), dict[str, int](), 0
        while chunk := list(islice(stream, _CHUNK)):
            asked = [item for item in chunk if item.answer.parsed]
            found = self.judge.verdicts(self.template, [self.payload(item) for item in asked])
            grades: dict[str, float | None] = {}
            for item, verdict in zip(asked, found, strict=True):
                grade = None if verdict.text is None else self.grade(verdict.text)
                if grade is None:
                    reason = verdict.error or "a verdict without a grade"
                    errors[reason], missing = errors.get(reason, 0) + 1, missing + 1
                grades[item.row.key] = grade
            for item in chunk:
                grade = grades.get(item.row.key, 0.0)
                if grade is not None:
                    tally.add(item.row, grade, parts=parts_of(item.row, self.parts))
        if missing:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in errors.items())
            na = f"{missing} verdicts are missing ({reasons}); score again to ask for them"
            return {self.names[0]: Score(float("nan"), len(tally) + missing, None, protocol, na=na)}
        return {self.names[0]: tally.mean(protocol)}

    def right(self, answered: Answered) -> bool:
        """Whether the grade reaches the threshold; without a judge nothing does."""
        if self.judge is None or not answered.answer.parsed:
            return False
        (verdict,) = self.judge.verdicts(self.template, [self.payload(answered)])
        grade = None if verdict.text is None else self.grade(verdict.text)
        return grade is not None and grade >= self.threshold

    def payload(self, answered: Answered) -> Mapping[str, str]:
        """What the judge sees of an answer: the template's fields, and what rules look at."""
        row = answered.row
        values = {**row.meta, "question": row.prompt, "answer": row.answer, "reply": answered.answer.value}
        kept = dict.fromkeys((*self.template.fields, "answer", "reply"))
        return {name: str(values[name]) for name in kept if name in values}

    def grade(self, verdict: str) -> float | None:
        """The last number of a verdict, between 0 and 1, or None."""
        numbers = _NUMBER.findall(verdict)
        if not numbers or not self.lowest <= float(numbers[-1]) <= self.highest:
            return None
        return (float(numbers[-1]) - self.lowest) / (self.highest - self.lowest)
