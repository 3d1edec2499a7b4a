"""MMMU (https://arxiv.org/abs/2311.16502): its parsers of choices and of open answers, without its random guess."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Value = str | float
_ENDS = (",", ".", "!", "?", ";", ":", "'")
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_SENTENCES = re.compile(r"\.\s(?=[A-Z])|\n")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
DOMAINS: dict[str, tuple[str, ...]] = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power",
        "Materials", "Mechanical_Engineering",
    ),
}  # fmt: skip


def parse_mmmu_choice(reply: str, options: Mapping[str, str]) -> str | None:
    """The letter named last, as the official parser finds it; None where that one draws a letter at random.

    Letters in brackets count before letters between spaces, and those before texts of options (only in replies of more
    than five words).

    Args:
        reply: What the model wrote.
        options: Letter -> text.
    """
    for mark in _ENDS:
        reply = reply.strip(mark)
    text = f" {reply} "
    for pattern in ("({})", " {} "):
        places = {letter: text.rfind(pattern.format(letter)) for letter in options}
        if max(places.values(), default=-1) >= 0:
            return max(places, key=lambda letter: places[letter])
    if len(text.split()) > 5:
        lowered = text.lower()
        places = {letter: lowered.rfind(option.lower()) for letter, option in options.items()}
        if max(places.values(), default=-1) >= 0:
            return max(places, key=lambda letter: places[letter])
    return None


def parse_mmmu_open(reply: str) -> list[Value]:
    """Everything in a reply that may be the answer: key phrases and the numbers in them, normalised."""
    found: list[str] = list(_key_phrases(reply))
    for phrase in list(found):
        for pattern in _NUMBERS:
            found.extend(pattern.findall(phrase))
    values: dict[Value, None] = {}
    for item in found:
        values |= dict.fromkeys(_normalise(item))
    return list(values)


def mmmu_open_right(values: Sequence[Value], golds: str | Sequence[str]) -> bool:
    """Whether a gold is a part of one of the texts, or equals one of the numbers after rounding to two decimals.

    Args:
        values: From :func:`parse_mmmu_open`.
        golds: The answer, or several.

    Raises:
        TypeError: If the values are a string, whose characters would be compared one by one.
    """
    if isinstance(values, str):
        raise TypeError("expected the list of values of parse_mmmu_open, got a string")
    accepted = [value for gold in ([golds] if isinstance(golds, str) else golds) for value in _normalise(str(gold))]
    texts = [value for value in accepted if isinstance(value, str)]
    return any(
        any(text in value for text in texts) if isinstance(value, str) else value in accepted for value in values
    )


def _key_phrases(reply: str) -> list[str]:
    reply = reply.strip().strip(".").lower()
    sentences = _SENTENCES.split(reply)
    found = []
    for number, sentence in enumerate(sentences, 1):
        indicators = (*_INDICATORS, "=") if number == len(sentences) else _INDICATORS
        tails = [sentence.split(indicator)[-1].strip() for indicator in indicators if indicator in sentence]
        # As in the original, an empty tail gives way to whatever comes next.
        shortest = ""
        for tail in tails:
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in _ENDS:
            found.append(shortest)
    return found or [reply]


def _normalise(text: str) -> list[Value]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lowered = text.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]
