"""ROUGE-L of captions (https://aclanthology.org/W04-1013) as the COCO caption evaluation computes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq

from eval.metrics.captions.cider import Tokens

_BETA = 1.2


def rouge_l(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> NDArray[np.float64]:
    """ROUGE-L of every image; the corpus's score is the mean.

    ``(1 + b^2) P R / (R + b^2 P)`` with b = 1.2, where P and R are the best precision and the best recall of the
    longest common subsequence over the references, not necessarily of the same one.

    Args:
        candidates: Tokens of one caption per image.
        references: Tokens of the references of each.

    Raises:
        ValueError: If the numbers differ, or an image has no reference.
    """
    if len(candidates) != len(references) or not all(references):
        raise ValueError(f"ROUGE-L: expected references for each of {len(candidates)} captions, got {len(references)}")
    return np.array([_score(*pair) for pair in zip(candidates, references, strict=True)])


def _score(candidate: Tokens, references: Sequence[Tokens]) -> float:
    own = list(candidate) or [""]  # the original splits an empty text into one empty token
    theirs = [list(reference) or [""] for reference in references]
    common = [LCSseq.similarity(own, reference) for reference in theirs]
    precision = max(common) / len(own)
    recall = max(count / len(reference) for count, reference in zip(common, theirs, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
