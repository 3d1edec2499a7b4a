"""Answers read off documents, charts and signs: ANLS, relaxed accuracy, and whether the gold is contained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from rapidfuzz.distance import Levenshtein

AnlsVariant = Literal["paper", "rrc"]
ANLS_VARIANTS: tuple[str, ...] = ("paper", "rrc")
_YEAR = re.compile(r"(?:1[5-9]|20)\d\d\Z")


def anls(prediction: str, golds: Sequence[str], *, threshold: float = 0.5, variant: AnlsVariant = "paper") -> float:
    """Average normalised Levenshtein similarity of one answer: the best ``1 - NL`` over the golds.

    Both are lower-cased and their white space is collapsed first. The two variants in use differ at the boundary and in
    the denominator:

    - ``paper`` (https://arxiv.org/abs/1905.13648, and the ``anls`` package): NL over the longer of the collapsed texts,
      and 0 where NL >= threshold.
    - ``rrc`` (the evaluation script of the DocVQA and InfographicVQA challenges): NL over the longer of the texts as
      they were given, and 0 where ``1 - NL < threshold``, so that exactly one half counts.

    Args:
        prediction: The reply.
        golds: Accepted answers.
        threshold: The boundary.
        variant: One of :data:`ANLS_VARIANTS`.

    Raises:
        ValueError: If there are no golds, or the variant is unknown.
    """
    if not golds:
        raise ValueError("ANLS: expected at least one gold answer, got none")
    if variant not in ANLS_VARIANTS:
        raise ValueError(f"ANLS variant: expected one of {ANLS_VARIANTS}, got {variant!r}")
    collapsed = _collapse(prediction)
    distances = []
    for gold in golds:
        own = _collapse(gold)
        length = max(len(collapsed), len(own)) if variant == "paper" else max(len(prediction), len(gold))
        distances.append(Levenshtein.distance(collapsed, own) / length if length else 0.0)
    nearest = min(distances)
    if variant == "paper":
        return 1 - nearest if nearest < threshold else 0.0
    return 1 - nearest if 1 - nearest >= threshold else 0.0


def relaxed_match(prediction: str, gold: str, *, tolerance: float = 0.05, strict_years: bool = False) -> bool:
    """ChartQA's relaxed accuracy (https://arxiv.org/abs/2203.10244): numbers may differ by 5 %, other text by case.

    ``%`` at the end divides by 100, so "5" is not "5%"; a gold of 0 is compared as text; "1,000" is no number.

    Args:
        prediction: The reply.
        gold: The answer.
        tolerance: Largest relative difference of numbers.
        strict_years: Compare a gold that looks like a year (1500 to 2099, no unit) as text: within 5 % of 2008 lie
            all years from 1908 to 2108.
    """
    if strict_years and _YEAR.match(gold.strip()):
        return prediction.strip() == gold.strip()
    number, wanted = _number(prediction), _number(gold)
    if number is not None and wanted:
        return abs(number - wanted) / abs(wanted) <= tolerance
    return prediction.lower() == gold.lower()


def contains_gold(prediction: str, golds: Sequence[str], *, formula: bool = False) -> bool:
    """OCRBench's rule (https://arxiv.org/abs/2305.07895): whether a gold is part of the reply.

    Args:
        prediction: The reply.
        golds: Accepted answers.
        formula: Compare without any spaces but with case, as its handwritten formulas are.
    """
    if formula:
        return any(_unspaced(gold) in _unspaced(prediction) for gold in golds)
    reply = _one_line(prediction)
    return any(_one_line(gold) in reply for gold in golds)


def _collapse(text: str) -> str:
    return " ".join(text.lower().split())


def _one_line(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _unspaced(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
