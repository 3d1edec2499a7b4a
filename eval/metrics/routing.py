"""Precision, recall and F1 of task calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.metrics.statistics import Estimate, bootstrap

JsonCall = Mapping[str, Any]


def count_right_calls(predicted: Sequence[JsonCall], reference: Sequence[JsonCall]) -> int:
    """How many places of a reply hold the right call.

    Task, prompt and number of groundings must equal those of the reference call at the same place, so a call too
    many at the front makes every later one wrong.
    """
    return sum(_same(mine, theirs) for mine, theirs in zip(predicted, reference, strict=False))


def routing_estimates(counts: Sequence[tuple[int, int, int]]) -> dict[str, Estimate]:
    """Micro-averaged ``precision``, ``recall`` and ``f1``.

    Args:
        counts: (right, predicted, expected) calls per reply.

    Returns:
        The three estimates; n is the number of replies, errors are bootstrapped over replies. Precision (recall)
        is 1 when nothing was predicted (expected).
    """
    table = np.asarray(counts, dtype=np.float64).reshape(-1, 3)
    return {
        name: Estimate(
            _rates(table.sum(0))[name],
            len(table),
            bootstrap(lambda indices, name=name: _rates(table[indices].sum(0))[name], len(table)),  # type: ignore[misc]
        )
        for name in ("precision", "recall", "f1")
    }


def _rates(sums: np.ndarray) -> dict[str, float]:
    right, predicted, expected = (float(value) for value in sums)
    return {
        "precision": right / predicted if predicted else 1.0,
        "recall": right / expected if expected else 1.0,
        "f1": 2 * right / (predicted + expected) if predicted + expected else 1.0,
    }


def _same(mine: JsonCall, theirs: JsonCall) -> bool:
    same_prompt = " ".join(mine["prompt"].split()) == " ".join(theirs["prompt"].split())
    return mine["task"] == theirs["task"] and same_prompt and len(mine["groundings"]) == len(theirs["groundings"])
