"""Answers that are one of a set of labels: exact, mentioned alone, and averages over classes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from eval.metrics.text import normalise_answer


def label_equals(reply: str, gold: str) -> bool:
    """Whether the whole reply is the label, but for case, white space and end punctuation."""
    return normalise_answer(reply) == normalise_answer(gold)


def only_label(reply: str, labels: Sequence[str]) -> str | None:
    """The one label that a reply mentions, as LLaGA counts it (https://arxiv.org/abs/2402.08170); None for several.

    A label within a longer label that is mentioned too is not mentioned by itself. Taking the gold if it is among the
    first few mentioned, as GraphGPT's script does, would reward listing.

    Args:
        reply: What the model wrote.
        labels: All of them.
    """
    text = reply.casefold()
    found = [
        label for label in dict.fromkeys(labels) if re.search(rf"(?<!\w){re.escape(label.casefold())}(?!\w)", text)
    ]
    alone = [label for label in found if not any(label != other and label in other for other in found)]
    return alone[0] if len(alone) == 1 else None


def macro_f1(predicted: Sequence[str | None], golds: Sequence[str]) -> float:
    """Unweighted mean of the F1 of every class that is a gold; None is no class.

    Raises:
        ValueError: If there are no golds.
    """
    if not golds:
        raise ValueError("macro F1: expected at least one gold, got none")
    scores = []
    for label in dict.fromkeys(golds):
        hits = sum(mine == theirs == label for mine, theirs in zip(predicted, golds, strict=True))
        total = sum(mine == label for mine in predicted) + sum(theirs == label for theirs in golds)
        scores.append(2 * hits / total)
    return sum(scores) / len(scores)


def balanced_accuracy(predicted: Sequence[str | None], golds: Sequence[str]) -> float:
    """Unweighted mean of the recall of every class, "unweighted accuracy" in emotion recognition.

    Raises:
        ValueError: If there are no golds.
    """
    if not golds:
        raise ValueError("balanced accuracy: expected at least one gold, got none")
    recalls = []
    for label in dict.fromkeys(golds):
        own = [mine == label for mine, theirs in zip(predicted, golds, strict=True) if theirs == label]
        recalls.append(sum(own) / len(own))
    return sum(recalls) / len(recalls)
