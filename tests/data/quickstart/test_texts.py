"""Scenes and clips in words: right answers, many turns, nothing but text."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from data.quickstart import texts
from data.quickstart.scenes import COLOURS
from data.quickstart.synthesis.utterances import DIGITS

pytest.importorskip("sklearn")


def described(text: str) -> list[tuple[int, str]]:
    """The digits of a scene in words, from left to right."""
    return [(int(digit), colour) for colour, digit in re.findall(rf"a ({'|'.join(COLOURS)}) (\d)", text)]


def with_digits(asked: str) -> str:
    """The question with "7" for "seven", as a voice would say it."""
    for digit, word in enumerate(DIGITS["en"]):
        asked = re.sub(rf"\b{word}\b", str(digit), asked)
    return asked


def check_look_ups(asked: str, said: str, scene: list[tuple[int, str]]) -> None:
    """Every pair of the answer stands in the scene once, and begins with what was asked for, in that order."""
    pairs = [tuple(pair.split()) for pair in said.split(", ")]
    by_digit = pairs[0][0].isdigit()
    known = [(str(digit), colour) if by_digit else (colour, str(digit)) for digit, colour in scene]
    assert all(pair in known and [key for key, _ in known].count(pair[0]) == 1 for pair in pairs)
    words = re.findall(r"\d" if by_digit else "|".join(COLOURS), with_digits(asked).split(". ")[-1])
    assert words[-len(pairs) :] == [key for key, _ in pairs]


def test_texts_of_look_ups_ask_for_nothing_else():
    kinds: Counter[str] = Counter()
    for index in range(200):
        record, _ = texts.look_ups("train", index, 0)
        turns = list(zip(record.messages[::2], record.messages[1::2], strict=True))
        assert len(turns) == len(record.meta["question_types"]) > 0
        scene = described(turns[0][0].content[0].text.split(".")[0])
        for (question, reply), kind in zip(turns, record.meta["question_types"], strict=True):
            kinds[kind] += 1
            asked, said = with_digits(question.content[0].text), reply.content[0].text
            if kind == "look_ups":
                check_look_ups(asked, said, scene)
            elif kind == "plus":
                sums = re.findall(r"(\d) plus (\d) (\d+)", said)
                assert len(sums) == 3 and all(int(a) + int(b) == int(total) for a, b, total in sums)
                assert all(f"{a} plus {b}" in asked for a, b, _ in sums)
            elif kind == "sums":
                known = {colour: digit for digit, colour in scene}
                sums = re.findall(r"([a-z]+) and ([a-z]+) (\d+)", said)
                assert len(sums) == 3 and all(known[a] + known[b] == int(total) for a, b, total in sums)
                assert all(f"{a} and {b}" in asked for a, b, _ in sums)
            elif kind == "sum":
                wanted = [word for word in re.findall(r"[a-z]+", asked.split(". ")[-1]) if word in COLOURS]
                assert said == str(sum(digit for digit, colour in scene if colour in wanted))
            else:
                digit, colour = (int(said), None) if kind == "digit_of_colour" else (None, said)
                named = asked.split(". ")[-1]
                found = [pair for pair in scene if digit == pair[0] or colour == pair[1]]
                assert any(pair[1] in named if digit is not None else str(pair[0]) in named for pair in found)
    assert set(kinds) == set(texts.LOOK_UP_KINDS)


def test_answers_follow_from_the_words():
    kinds: Counter[str] = Counter()
    for index in range(200):
        record, members = texts.texts("train", index, 0)
        assert not members and not record.media and not record.targets
        turns = list(zip(record.messages[::2], record.messages[1::2], strict=True))
        assert len(turns) == len(record.meta["question_types"])
        scene = described(turns[0][0].content[0].text.split(".")[0])
        for (question, reply), kind in zip(turns, record.meta["question_types"], strict=True):
            kinds[kind] += 1
            asked, said = question.content[0].text, reply.content[0].text
            if kind == "count":
                assert said == str(len(scene))
            elif kind == "leftmost":
                assert said == str(scene[0][0])
            elif kind == "sum":
                wanted = [word for word in re.findall(r"[a-z]+", asked.split(". ")[-1]) if word in COLOURS]
                assert said == str(sum(digit for digit, colour in scene if colour in wanted))
            elif kind == "look_ups":
                check_look_ups(asked, said, scene)
            elif kind in ("draw", "two"):
                assert [part.prompt for part in reply.content] == re.findall(
                    rf"(?:{'|'.join(COLOURS)}) \d", asked.split(". ", 1)[-1] if question is turns[0][0] else asked
                )
            elif kind == "transcribe":
                assert asked.endswith(said)
    assert set(texts.SCENE_KINDS) | {"translate", "transcribe", "spoken_question"} == set(kinds)


def test_a_text_depends_on_its_place_alone():
    first, again = (texts.texts("train", 7, 0)[0].to_json() for _ in range(2))
    assert first == again != texts.texts("train", 7, 1)[0].to_json()
