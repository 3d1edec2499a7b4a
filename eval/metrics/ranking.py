"""Areas under the ROC curve and under the precision-recall curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata


def roc_auc(scores: Sequence[float], positives: Sequence[bool]) -> float:
    """Probability that a positive ranks above a negative, ties counting half; NaN without both classes."""
    labels = np.asarray(positives, dtype=bool)
    num_positive, num_negative = int(labels.sum()), int((~labels).sum())
    if not num_positive or not num_negative:
        return float("nan")
    ranks = rankdata(np.asarray(scores, dtype=np.float64))
    return float((ranks[labels].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def average_precision(scores: Sequence[float], positives: Sequence[bool]) -> float:
    """``sum_k (R_k - R_(k-1)) P_k`` over the distinct scores, the highest first; NaN without a positive.

    Equal scores are one step, so their order does not matter.
    """
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(positives, dtype=bool)
    if not labels.any():
        return float("nan")
    order = np.argsort(-values, kind="stable")
    values, labels = values[order], labels[order]
    last_of_tie = np.flatnonzero(np.r_[values[1:] != values[:-1], True])
    hits = np.cumsum(labels)[last_of_tie]
    gained = np.diff(hits, prepend=0) / labels.sum()
    return float((gained * hits / (last_of_tie + 1)).sum())
