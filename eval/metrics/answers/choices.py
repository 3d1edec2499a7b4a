"""Multiple choice: which option a reply names, and how rotations of one question are scored together."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from string import ascii_uppercase

from eval.metrics.text import normalise_answer

_MAX_WORDS_ALONE = 3
_MARKED = re.compile(r"\(([A-Z])\)|^\s*([A-Z])[.:)](?=\s|$)", re.MULTILINE)
# "A" and "I" before a word are an article and a pronoun.
_STATED = re.compile(
    r"\b(?:answer|option|choice)(?:\s+(?:is|would be|should be))?\s*:?\s*[(\[\"'*]*"
    r"([AI](?!\s+\w)|[B-HJ-Z])(?=[)\]\"'*.,:;!\s]|$)",
    re.IGNORECASE,
)
_ALONE = re.compile(r"(?<![\w'.-])([AI](?!\s+[a-z])|[B-HJ-Z])(?![\w'-])")
_EXACT_STATED = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
_TO_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_SCIENCE_LETTERS = 5
_SCIENCE = re.compile(r"The answer is ([A-Z]).")


def letters(count: int) -> str:
    """The letters of so many options.

    Raises:
        ValueError: If there are none, or more than letters.
    """
    if not 0 < count <= len(ascii_uppercase):
        raise ValueError(f"options: expected 1 to {len(ascii_uppercase)}, got {count}")
    return ascii_uppercase[:count]


def parse_choice(reply: str, options: Sequence[str] | Mapping[str, str]) -> str | None:
    """The letter that a reply names, or None; nothing is guessed.

    In this order, and each only if it names exactly one option: the reply is a bare letter; letters marked as options
    ("(B)" anywhere, "B." or "B:" at the start of a line); "the answer is B"; the text of an option, as the whole reply
    or within it; in a reply of at most three words, a capital standing alone.

    Args:
        reply: What the model wrote.
        options: Texts of the options A, B, ..., or letter -> text.
    """
    table = options if isinstance(options, Mapping) else dict(zip(letters(len(options)), options, strict=True))
    text = reply.strip()
    bare = text.strip(".,:;!()[]*\"' ").upper()
    if bare in table:
        return bare
    for found in (
        {first or second for first, second in _MARKED.findall(text)},
        {letter.upper() for letter in _STATED.findall(text)},
    ):
        named = found & set(table)
        if named:
            return named.pop() if len(named) == 1 else None
    by_text = _named_texts(text, table)
    if by_text:
        return by_text[0] if len(by_text) == 1 else None
    alone = set(_ALONE.findall(text)) & set(table) if len(text.split()) <= _MAX_WORDS_ALONE else set()
    return alone.pop() if len(alone) == 1 else None


def parse_exact_choice(reply: str, options: Mapping[str, str]) -> str | None:
    """MMBench without a judge, as VLMEvalKit's exact matching finds it; None where it would ask the judge.

    A letter counts if it is the only option's letter among the words and one of the last four, or follows "answer is";
    else the only option whose text is in the reply, unless the reply is more than twice as long as all options
    together. "Z" is its letter for a refusal.

    Args:
        reply: What the model wrote.
        options: Letter -> text.
    """
    words = reply.translate(_TO_SPACES).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    if not named and "Z" in words:
        return "Z"
    stated = _EXACT_STATED.search(reply)
    if stated and stated.group(1).upper() in options:
        return stated.group(1).upper()
    lowered = reply.lower()
    if len(lowered) > 2 * sum(len(text) for text in options.values()):
        return None
    within = [letter for letter, text in options.items() if text.lower() in lowered]
    return within[0] if len(within) == 1 else None


def parse_science_choice(reply: str, num_options: int = 5) -> str | None:
    """ScienceQA as LLaVA scores it: the letter, "B. ...", or one "The answer is B."; case and place matter.

    Args:
        reply: What the model wrote.
        num_options: Letters beyond these are no answer.
    """
    known = ascii_uppercase[:_SCIENCE_LETTERS]
    allowed = known[:num_options]
    if len(reply) == 1 and reply in known:
        return reply if reply in allowed else None
    if len(reply) >= 3 and reply[0] in known and reply[1:3] == ". ":
        return reply[0] if reply[0] in allowed else None
    found = _SCIENCE.findall(reply)
    return found[0] if len(found) == 1 and found[0] in allowed else None


def circular_groups(
    right: Sequence[bool], groups: Sequence[Hashable], expected: Mapping[Hashable, int] | None = None
) -> dict[Hashable, bool]:
    """MMBench's circular evaluation (https://arxiv.org/abs/2307.06281): a group is right if all its rotations are.

    Args:
        right: One truth value per rotation.
        groups: What each belongs to, such as its index modulo a million.
        expected: Group -> its number of rotations; a group with fewer answers is not right.

    Raises:
        ValueError: If a group has more answers than rotations.
    """
    counts: dict[Hashable, int] = {}
    result: dict[Hashable, bool] = {}
    for value, group in zip(right, groups, strict=True):
        counts[group] = counts.get(group, 0) + 1
        result[group] = result.get(group, True) and bool(value)
    for group, count in (expected or {}).items():
        given = counts.get(group, 0)
        if given > count:
            raise ValueError(f"group {group!r}: expected {count} rotations, got {given}")
        if given < count:
            result[group] = False
    return result


def rotations(options: Sequence[str], gold: int) -> list[tuple[list[str], int]]:
    """All cyclic shifts of the options with the place of the gold in each; the first is the question itself."""
    count = len(options)
    return [
        ([options[(place - shift) % count] for place in range(count)], (gold + shift) % count) for shift in range(count)
    ]


def _named_texts(reply: str, table: Mapping[str, str]) -> list[str]:
    """Letters of the options whose text is the reply, or else is within it and not part of a longer one that is."""
    whole = normalise_answer(reply)
    texts = {letter: normalise_answer(text) for letter, text in table.items() if normalise_answer(text)}
    same = [letter for letter, text in texts.items() if text == whole]
    if same:
        return same
    lowered = reply.casefold()
    within = [letter for letter, text in texts.items() if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", lowered)]
    return [
        letter
        for letter in within
        if not any(texts[letter] != texts[other] and texts[letter] in texts[other] for other in within)
    ]
