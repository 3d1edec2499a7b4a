"""BLEU-1 to BLEU-4 of captions (https://aclanthology.org/P02-1040) as the COCO caption evaluation computes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.metrics.captions.cider import NUM_ORDERS, Tokens

_SMALL, _TINY = 1e-9, 1e-15


@dataclass(frozen=True)
class BleuCounts:
    """What BLEU sums over images.

    Args:
        correct: (images, 4) n-grams found in a reference, clipped.
        guessed: (images, 4) n-grams of the caption.
        length: (images,) tokens of the caption.
        reference_length: (images,) tokens of the reference nearest in length, the shorter of two equally near.
    """

    correct: NDArray[np.float64]
    guessed: NDArray[np.float64]
    length: NDArray[np.float64]
    reference_length: NDArray[np.float64]


def count_bleu(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> BleuCounts:
    """Counts of every image.

    Args:
        candidates: Tokens of one caption per image.
        references: Tokens of the references of each.

    Raises:
        ValueError: If the numbers differ, or an image has no reference.
    """
    if len(candidates) != len(references) or not all(references):
        raise ValueError(f"BLEU: expected references for each of {len(candidates)} captions, got {len(references)}")
    shape = (len(candidates), NUM_ORDERS)
    correct, guessed = np.zeros(shape), np.zeros(shape)
    length, reference_length = np.zeros(len(candidates)), np.zeros(len(candidates))
    for place, (candidate, own) in enumerate(zip(candidates, references, strict=True)):
        length[place] = len(candidate)
        reference_length[place] = min((abs(len(item) - len(candidate)), len(item)) for item in own)[1]
        for order in range(1, NUM_ORDERS + 1):
            counts = _count(candidate, order)
            guessed[place, order - 1] = max(0, len(candidate) - order + 1)
            if counts:
                theirs = [_count(item, order) for item in own]
                correct[place, order - 1] = sum(
                    min(count, max(item[gram] for item in theirs)) for gram, count in counts.items()
                )
    return BleuCounts(correct, guessed, length, reference_length)


def bleu(counts: BleuCounts, images: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """(4,) BLEU-1 to BLEU-4 of a corpus, between 0 and 1.

    Args:
        counts: Of its images.
        images: Indices of some of them, repeated ones included; all by default.
    """
    chosen = slice(None) if images is None else images
    length, reference_length = counts.length[chosen].sum(), counts.reference_length[chosen].sum()
    return _combine(counts.correct[chosen].sum(0), counts.guessed[chosen].sum(0), length, reference_length)


def bleu_of_images(counts: BleuCounts) -> NDArray[np.float64]:
    """(images, 4) BLEU of every image by itself."""
    rows = zip(counts.correct, counts.guessed, counts.length, counts.reference_length, strict=True)
    return np.array([_combine(*row) for row in rows]).reshape(-1, NUM_ORDERS)


def _combine(
    correct: NDArray[np.float64], guessed: NDArray[np.float64], length: float, reference_length: float
) -> NDArray[np.float64]:
    precisions = np.cumprod((correct + _TINY) / (guessed + _SMALL)) ** (1 / np.arange(1, NUM_ORDERS + 1))
    ratio = (length + _TINY) / (reference_length + _SMALL)
    return precisions * (np.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def _count(tokens: Tokens, order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))
