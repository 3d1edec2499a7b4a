"""The area under the ROC curve."""

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
