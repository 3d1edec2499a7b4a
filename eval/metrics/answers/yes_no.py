"""Yes or no: POPE and MME, with their own parsers, and a strict one that admits not to know."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

_STRICT = re.compile(r"[\s\"'*(]*(yes|no)\b", re.IGNORECASE)
MME_PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def parse_pope(reply: str) -> str:
    """Yes or no as POPE's own script has it (https://arxiv.org/abs/2305.10355).

    No, if "No", "no" or "not" is a word of what stands before the first full stop, commas dropped; else yes, whatever
    it says.
    """
    words = reply.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def parse_mme(reply: str) -> str | None:
    """Yes, no or None as MME's own script has it (https://arxiv.org/abs/2306.13394): the first four characters."""
    start = reply.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


def parse_yes_no(reply: str) -> str | None:
    """Yes or no if the reply begins with that word, else None."""
    match = _STRICT.match(reply)
    return match.group(1).lower() if match else None


@dataclass(frozen=True)
class BinaryScores:
    """Rates of yes-or-no answers, "yes" being the positive class.

    Args:
        accuracy: Share of right answers; an answer that is None is wrong.
        precision: Of "yes"; 0 if no answer is.
        recall: Of "yes"; 0 if none should be.
        f1: Harmonic mean of both; 0 where both are.
        yes_ratio: Share of *answers* that are "yes".
        unknown: Share of answers that are None.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    unknown: float


def binary_scores(answers: Sequence[str | None], golds: Sequence[str]) -> BinaryScores:
    """Rates of answers ("yes", "no" or None) against golds ("yes" or "no").

    Raises:
        ValueError: If there are none, or a gold is neither.
    """
    if not answers:
        raise ValueError("expected at least one answer, got none")
    unknown_golds = sorted({gold for gold in golds if gold not in ("yes", "no")})
    if unknown_golds:
        raise ValueError(f"golds: expected 'yes' or 'no', got {unknown_golds[:3]}")
    pairs = list(zip(answers, golds, strict=True))
    hits = sum(answer == gold == "yes" for answer, gold in pairs)
    said, meant = sum(answer == "yes" for answer in answers), sum(gold == "yes" for gold in golds)
    return BinaryScores(
        accuracy=sum(answer == gold for answer, gold in pairs) / len(pairs),
        precision=hits / said if said else 0.0,
        recall=hits / meant if meant else 0.0,
        f1=2 * hits / (said + meant) if hits else 0.0,
        yes_ratio=said / len(pairs),
        unknown=sum(answer is None for answer in answers) / len(pairs),
    )


@dataclass(frozen=True)
class MmeScore:
    """One subtask of MME.

    Args:
        accuracy: Share of right answers.
        accuracy_plus: Share of images both of whose questions are answered right.
    """

    accuracy: float
    accuracy_plus: float

    @property
    def score(self) -> float:
        """100 times the sum of both, so at most 200."""
        return 100 * (self.accuracy + self.accuracy_plus)


def mme_score(right: Sequence[bool], images: Sequence[Hashable]) -> MmeScore:
    """Score of a subtask.

    Args:
        right: One truth value per question.
        images: The image of each; an image with one answer only (part of a run) is not right as a pair.

    Raises:
        ValueError: If there are none, or an image has more than two.
    """
    if not right:
        raise ValueError("expected at least one answer, got none")
    pairs: dict[Hashable, list[bool]] = {}
    for value, image in zip(right, images, strict=True):
        pairs.setdefault(image, []).append(bool(value))
    crowded = [image for image, own in pairs.items() if len(own) > 2]
    if crowded:
        raise ValueError(f"image {crowded[0]!r}: expected two questions, got {len(pairs[crowded[0]])}")
    plus = sum(len(own) == 2 and all(own) for own in pairs.values()) / len(pairs)
    return MmeScore(sum(map(bool, right)) / len(right), plus)
