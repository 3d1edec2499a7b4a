"""The area under the ROC curve."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import rankdata

from eval.metrics.statistics import Estimate, bootstrap


def roc_auc(scores: Sequence[float], positives: Sequence[bool]) -> float:
    """Probability that a positive ranks above a negative, ties counting half; NaN without both classes."""
    labels = np.asarray(positives, dtype=bool)
    num_positive, num_negative = int(labels.sum()), int((~labels).sum())
    if not num_positive or not num_negative:
        return float("nan")
    ranks = rankdata(np.asarray(scores, dtype=np.float64))
    return float((ranks[labels].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def auc_estimate(
    scores: Sequence[float], positives: Sequence[bool], clusters: Sequence[Hashable] | None = None
) -> Estimate:
    """:func:`roc_auc` with its error bootstrapped over clusters.

    Raises:
        ValueError: If one of the classes is missing.
    """
    numbers, labels = np.asarray(scores, dtype=np.float64), np.asarray(positives, dtype=bool)
    value = roc_auc(numbers.tolist(), labels.tolist())
    if np.isnan(value):
        raise ValueError(f"AUC: expected positives and negatives, got {int(labels.sum())} of {len(labels)} positive")

    def area(indices: np.ndarray) -> float:
        return roc_auc(numbers[indices].tolist(), labels[indices].tolist())

    return Estimate(value, len(numbers), bootstrap(area, len(numbers), clusters))
