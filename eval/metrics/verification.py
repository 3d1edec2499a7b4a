"""Verification: equal error rate and detection cost of scores that say how alike two things are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def error_rates(
    scores: Sequence[float], targets: Sequence[bool]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(false acceptances, false rejections, thresholds) of accepting at or above each threshold, the highest first.

    The first threshold is infinite: nothing is accepted.

    Raises:
        ValueError: If targets or impostors are missing, or a score is not finite.
    """
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=bool)
    if not np.isfinite(values).all():
        raise ValueError("verification: expected finite scores, got NaN or infinity")
    if labels.all() or not labels.any():
        raise ValueError(
            f"verification: expected targets and impostors, got {int(labels.sum())} targets of {len(labels)} trials"
        )
    order = np.argsort(-values, kind="stable")
    values, labels = values[order], labels[order]
    last_of_tie = np.flatnonzero(np.r_[values[1:] != values[:-1], True])
    accepted_targets, accepted = np.cumsum(labels)[last_of_tie], last_of_tie + 1
    acceptance = np.r_[0.0, (accepted - accepted_targets) / (~labels).sum()]
    rejection = np.r_[1.0, 1 - accepted_targets / labels.sum()]
    return acceptance, rejection, np.r_[np.inf, values[last_of_tie]]


def equal_error_rate(scores: Sequence[float], targets: Sequence[bool], *, interpolate: bool = True) -> float:
    """Error rate at the threshold where false acceptances are as frequent as false rejections.

    Args:
        scores: Higher means more alike.
        targets: Whether each trial is one of the same.
        interpolate: Take the crossing on the line between the two neighbouring thresholds. Without it, the larger of
            the two rates at the threshold where they differ least, as VoxCeleb's trainer reports it.

    Raises:
        ValueError: As :func:`error_rates`.
    """
    acceptance, rejection, _ = error_rates(scores, targets)
    difference = acceptance - rejection
    if not interpolate:
        nearest = int(np.argmin(np.abs(difference)))
        return float(max(acceptance[nearest], rejection[nearest]))
    after = int(np.argmax(difference >= 0))  # the last threshold accepts everything, so there is one
    before = after - 1
    share = -difference[before] / (difference[after] - difference[before])
    return float(acceptance[before] + share * (acceptance[after] - acceptance[before]))


def minimum_detection_cost(
    scores: Sequence[float],
    targets: Sequence[bool],
    *,
    target_prior: float = 0.05,
    miss_cost: float = 1.0,
    false_alarm_cost: float = 1.0,
) -> float:
    """Smallest ``C_miss P_miss p + C_fa P_fa (1 - p)`` over thresholds, over that of the better constant decision.

    Args:
        scores: Higher means more alike.
        targets: Whether each trial is one of the same.
        target_prior: p, how frequent targets are in use.
        miss_cost: Of rejecting a target.
        false_alarm_cost: Of accepting an impostor.

    Raises:
        ValueError: As :func:`error_rates`.
    """
    acceptance, rejection, _ = error_rates(scores, targets)
    costs = miss_cost * rejection * target_prior + false_alarm_cost * acceptance * (1 - target_prior)
    return float(costs.min() / min(miss_cost * target_prior, false_alarm_cost * (1 - target_prior)))
