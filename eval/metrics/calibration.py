"""How well confidence tells right from wrong: bins of equal count, expected calibration error, Brier score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.metrics.statistics import Estimate, mean

NUM_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Confidence against what came of it.

    Args:
        bins: (mean confidence, share right) of groups of equal size, in order of confidence.
        error: Expected calibration error: mean over bins of the distance of the two, weighted by size.
        brier: Mean squared distance of confidence and outcome.
        n: Number of answers.
    """

    bins: tuple[tuple[float, Estimate], ...]
    error: float
    brier: float
    n: int


def calibration(confidence: Sequence[float], right: Sequence[bool], num_bins: int = NUM_BINS) -> Calibration:
    """Calibration of answers.

    Args:
        confidence: Between 0 and 1, one per answer.
        right: Whether it was.
        num_bins: Groups; fewer where there are fewer answers.

    Raises:
        ValueError: If there are no answers.
    """
    values, outcomes = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if not len(values):
        raise ValueError("calibration: expected at least one answer, got none")
    groups = np.array_split(np.argsort(values, kind="stable"), min(num_bins, len(values)))
    bins = tuple((float(values[own].mean()), mean(outcomes[own].tolist())) for own in groups)
    error = sum(abs(level - share.value) * share.n for level, share in bins) / len(values)
    return Calibration(bins, error, float(((values - outcomes) ** 2).mean()), len(values))
