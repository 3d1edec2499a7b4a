"""Exact match of short answers, and corpus word error rate."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jiwer
import numpy as np

from eval.metrics.statistics import Estimate, bootstrap

_SPACE = re.compile(r"\s+")


def normalise_answer(text: str) -> str:
    """Lower case, single spaces, no full stop or exclamation or question mark at the end; nothing else."""
    return _SPACE.sub(" ", text).strip().rstrip(".!?").strip().casefold()


def exact_match(prediction: str, references: str | Sequence[str]) -> bool:
    """Whether a prediction equals (one of) the references after :func:`normalise_answer`."""
    accepted = [references] if isinstance(references, str) else references
    return normalise_answer(prediction) in {normalise_answer(item) for item in accepted}


def word_errors(prediction: str, reference: str) -> tuple[int, int]:
    """(substitutions + deletions + insertions, words of the reference), case-sensitive, white space collapsed.

    Raises:
        ValueError: If the reference has no words.
    """
    reference, prediction = _SPACE.sub(" ", reference).strip(), _SPACE.sub(" ", prediction).strip()
    if not reference:
        raise ValueError("expected a reference transcript with at least one word, got an empty one")
    counts = jiwer.process_words(reference, prediction)
    edits = counts.substitutions + counts.deletions + counts.insertions
    return edits, counts.hits + counts.substitutions + counts.deletions


def word_error_rate(predictions: Sequence[str], references: Sequence[str]) -> Estimate:
    """Corpus word error rate, sum of edits over sum of reference words; its error is bootstrapped over utterances."""
    pairs = [word_errors(p, r) for p, r in zip(predictions, references, strict=True)]
    edits, words = np.asarray(pairs, dtype=np.float64).reshape(-1, 2).T

    def rate(indices: np.ndarray) -> float:
        return float(edits[indices].sum() / words[indices].sum())

    return Estimate(float(edits.sum() / words.sum()), len(pairs), bootstrap(rate, len(pairs)))
