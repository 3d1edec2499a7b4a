"""VQA soft accuracy (https://arxiv.org/abs/1505.00468) under the two normalisers in use, which are not interchangeable.

``official`` is that of the VQA evaluation server: nothing but white space is touched where the golds are all the same,
so "Yes" scores 0 against ten times "yes". ``evalai`` is that of Pythia and M4C (https://arxiv.org/abs/1911.06258), in
which TextVQA and VizWiz results are published; it lower-cases first and always normalises. Both keep the defects of the
originals, such as the pattern that was meant to spare decimal points, because published numbers have them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

PUNCTUATION = ';/[]"{}()=+\\_->@<`,?!'
NUMBERS = ("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_WORDS = {name: str(max(0, place - 1)) for place, name in enumerate(NUMBERS)}
_ARTICLES = frozenset({"a", "an", "the"})
_ONE_APOSTROPHE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've "
    "shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd "
    "there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've "
    "when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all "
    "you'd you'll you're you've"
).split()
_SEVERAL_APOSTROPHES = (
    "couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've "
    "something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've"
).split()


def _contractions() -> dict[str, str]:
    """Written without its apostrophe, or without one of several, -> as it should be."""
    table = {word.replace("'", ""): word for word in _ONE_APOSTROPHE}
    for word in _SEVERAL_APOSTROPHES:
        places = [place for place, letter in enumerate(word) if letter == "'"]
        table |= {word[:place] + word[place + 1 :]: word for place in places}
    return table | {"somebody'd": "somebodyd"}  # the wrong way round in the originals


CONTRACTIONS = _contractions()
# A full stop goes unless a digit follows; the look-behind of the originals has a typing error and never holds.
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # the originals pass re.UNICODE where ``sub`` takes a count
_OFFICIAL_COMMA = re.compile(r"\d,\d")
_EVALAI_COMMA = re.compile(r"(?<=\d),+(?=\d)")
Normaliser = Callable[[str], str]


def _strip_punctuation(text: str, comma: re.Pattern[str]) -> str:
    stripped = text
    has_number = comma.search(text) is not None
    for mark in PUNCTUATION:
        if mark in text:
            glued = not (has_number or f"{mark} " in text or f" {mark}" in text)
            stripped = stripped.replace(mark, " " if glued else "")
    return _PERIOD.sub("", stripped, _MAX_PERIODS)


def _tidy_words(text: str) -> str:
    words = (_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def clean(text: str) -> str:
    """Line ends and tabs become spaces; none at the ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 17)
def normalise_official(text: str) -> str:
    """As the VQA evaluation server does where the golds differ."""
    return _tidy_words(_strip_punctuation(clean(text), _OFFICIAL_COMMA))


@lru_cache(maxsize=1 << 17)
def normalise_evalai(text: str) -> str:
    """As Pythia's ``EvalAIAnswerProcessor`` does."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _tidy_words(_strip_punctuation(clean(text), _EVALAI_COMMA))


def leave_one_out(num_matching: int, num_golds: int) -> float:
    """Mean of min(1, matches / 3) over the golds without each one in turn: 0.6, 0.9 and 1 for 2, 3 and 10 of ten."""
    with_one_less = num_matching * min(1.0, max(0, num_matching - 1) / 3)
    return (with_one_less + (num_golds - num_matching) * min(1.0, num_matching / 3)) / num_golds


def official_accuracy(prediction: str, golds: Sequence[str]) -> float:
    """Soft accuracy as the VQA evaluation server gives it.

    Raises:
        ValueError: If there are no golds.
    """
    _check(golds)
    prediction, cleaned = clean(prediction), [clean(gold) for gold in golds]
    if any(gold != cleaned[0] for gold in cleaned):
        prediction, cleaned = normalise_official(prediction), [normalise_official(gold) for gold in cleaned]
    return leave_one_out(cleaned.count(prediction), len(cleaned))


def evalai_accuracy(prediction: str, golds: Sequence[str]) -> float:
    """Soft accuracy as Pythia and M4C give it.

    Raises:
        ValueError: If there are no golds.
    """
    _check(golds)
    answers = [normalise_evalai(gold) for gold in golds]
    return leave_one_out(answers.count(normalise_evalai(prediction)), len(answers))


def direct_answer_accuracy(prediction: str, golds: Sequence[str]) -> float:
    """A-OKVQA's (https://arxiv.org/abs/2206.01718): min(1, matches / 3) over all golds, compared as they stand."""
    return min(1.0, list(golds).count(prediction) / 3)


ACCURACIES: dict[str, Callable[[str, Sequence[str]], float]] = {
    "official": official_accuracy,
    "evalai": evalai_accuracy,
    "direct-answer": direct_answer_accuracy,
}
"""Name in a protocol -> from a prediction and its golds to a number between 0 and 1."""


def vqa_accuracies(
    predictions: Sequence[str], golds: Sequence[Sequence[str]], normaliser: str = "official"
) -> NDArray[np.float64]:
    """One accuracy per question.

    Args:
        predictions: Replies.
        golds: The golds of each question.
        normaliser: One of :data:`ACCURACIES`.

    Raises:
        ValueError: For an unknown normaliser, another number of golds than predictions, or a question without golds.
    """
    if normaliser not in ACCURACIES:
        raise ValueError(f"normaliser: expected one of {sorted(ACCURACIES)}, got {normaliser!r}")
    if len(predictions) != len(golds):
        raise ValueError(f"expected golds for each of {len(predictions)} predictions, got {len(golds)}")
    accuracy = ACCURACIES[normaliser]
    return np.fromiter((accuracy(*pair) for pair in zip(predictions, golds, strict=True)), np.float64, len(golds))


def _check(golds: Sequence[str]) -> None:
    if not len(golds):
        raise ValueError("expected at least one gold answer, got none")
