"""Precision, recall and F1 of task calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

JsonCall = Mapping[str, Any]
Rate = Literal["precision", "recall", "f1"]
RATES: tuple[Rate, ...] = ("precision", "recall", "f1")


def count_right_calls(predicted: Sequence[JsonCall], reference: Sequence[JsonCall]) -> int:
    """How many places of a reply hold the right call.

    Task, prompt and number of groundings must equal those of the reference call at the same place, so a call too
    many at the front makes every later one wrong.
    """
    return sum(same_call(mine, theirs) for mine, theirs in zip(predicted, reference, strict=False))


def routing_rate(counts: NDArray[np.float64], name: Rate) -> float:
    """Micro-averaged precision, recall or F1.

    Args:
        counts: (n, 3) numbers of right, predicted and expected calls per reply.
        name: Which.

    Returns:
        The rate; precision (recall) is 1 when nothing was predicted (expected).
    """
    right, predicted, expected = (float(value) for value in counts.sum(0))
    whole = {"precision": predicted, "recall": expected, "f1": (predicted + expected) / 2}[name]
    return right / whole if whole else 1.0


def same_call(mine: JsonCall, theirs: JsonCall) -> bool:
    """Whether task, prompt and number of groundings match."""
    same_prompt = " ".join(mine["prompt"].split()) == " ".join(theirs["prompt"].split())
    return mine["task"] == theirs["task"] and same_prompt and len(mine["groundings"]) == len(theirs["groundings"])
