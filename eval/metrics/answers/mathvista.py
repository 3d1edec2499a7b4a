"""MathVista (https://arxiv.org/abs/2310.02255): from a reply to the extracted answer to the normalised one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

_QUOTED = re.compile(r'The answer is "(.*)"\.')
_LETTER = re.compile(r"\(([a-zA-Z])\)")


def extract_directly(reply: str, question_type: str, answer_type: str, choices: Sequence[str]) -> str | None:
    """The answer where no judge is needed: an option, a whole or a decimal number, or 'The answer is "...".'; or None.

    Args:
        reply: What the model wrote.
        question_type: "multi_choice" or "free_form".
        answer_type: "text", "integer", "float" or "list".
        choices: The options, if any.
    """
    if question_type == "multi_choice" and reply in choices:
        return reply
    kind = {"integer": int, "float": float}.get(answer_type)
    if kind is not None:
        try:
            return str(kind(reply))
        except (ValueError, OverflowError):
            pass
    match = _QUOTED.search(reply)
    return match.group(1) if match else None


def normalise_extraction(
    extraction: str, question_type: str, answer_type: str, choices: Sequence[str], precision: float | None
) -> str | None:
    """The extracted answer in the form of the gold: an option, a number of its precision, or the text of a list.

    Args:
        extraction: What was extracted.
        question_type: "multi_choice" or "free_form".
        answer_type: "text", "integer", "float" or "list".
        choices: The options, if any; text that is none of them becomes the nearest by edit distance.
        precision: Decimals of a "float".

    Returns:
        None where it is no number, and for an empty extraction of a choice, which the original takes for the nearest
        option.
    """
    if question_type == "multi_choice":
        text = extraction.strip()
        if not text or not choices:
            return None
        letter = _LETTER.search(text)
        name = letter.group(1).upper() if letter else text
        place = ord(name) - ord("A") if len(name) == 1 else -1
        if 0 <= place < len(choices):
            return choices[place]
        return min(choices, key=lambda choice: Levenshtein.distance(name, choice))
    try:
        if answer_type == "integer":
            return str(int(float(extraction)))
        if answer_type == "float":
            return str(round(float(extraction), int(precision or 0)))
    except (ValueError, OverflowError):
        return None
    return extraction
