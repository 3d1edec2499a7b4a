"""Scenes and clips in words: right answers, many turns, nothing but text."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from data.quickstart import texts
from data.quickstart.scenes import COLOURS

pytest.importorskip("sklearn")


def described(text: str) -> list[tuple[int, str]]:
    """The digits of a scene in words, from left to right."""
    return [(int(digit), colour) for colour, digit in re.findall(rf"a ({'|'.join(COLOURS)}) (\d)", text)]


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
