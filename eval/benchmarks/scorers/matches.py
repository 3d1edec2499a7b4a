"""Scores that two things match, collected for whatever ranks them."""

from __future__ import annotations

from collections.abc import Iterable

from eval.benchmarks.metric import Answered
from eval.tally import Tally

WORST_WITHOUT = "a reply without a score counts as the worst one"


def tally_matches(answers: Iterable[Answered]) -> Tally:
    """Score and ``meta.match`` of every answer; without a score the lowest for a match, the highest for none."""
    tally = Tally(2)
    for item in answers:
        match = bool(item.row.meta["match"])
        worst = -1.0 if match else 2.0
        tally.add(item.row, float(item.answer.value) if item.answer.parsed else worst, float(match))
    return tally
