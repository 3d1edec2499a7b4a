"""What the demonstrations of mixtures train on and are asked: what they claim rests on it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from demonstrations.mixtures import crosslingual_transfer as crosslingual
from demonstrations.mixtures import instruction_diversity as diversity
from demonstrations.text_model import LETTER_IDS, make_tokenizer
from models.tokenizer import load_tokenizer
from routers.plain_text import plain_ids


def test_rules_that_are_asked_were_never_seen() -> None:
    ordered = diversity.rules(0)
    assert len(set(ordered)) == len(ordered) == 26 * 25 >= max(diversity.RULES) + diversity.UNSEEN_RULES
    assert ordered != diversity.rules(1)


@pytest.mark.parametrize(("occurs", "low", "high"), [(True, 1.0, 1.0), (False, 0.0, 0.0), (None, 0.6, 0.9)])
def test_strings_are_rewritten_by_their_rule(occurs: bool | None, low: float, high: float) -> None:
    chosen = diversity.rules(0)[:7]
    made = list(diversity.examples(chosen, 200, np.random.default_rng(0), occurs))
    changed = 0
    for number, item in enumerate(made):
        rule, _, string = item.question.partition(":")
        x, y = chosen[number % 7]
        assert rule == f"{x}>{y}" and len(set(string)) == len(string) == diversity.LENGTH
        places = [place for place, letter in enumerate(string) if letter == x]
        assert [a if place not in places else y for place, a in enumerate(string)] == list(item.answer)
        changed += bool(places)
    assert low <= changed / len(made) <= high


def test_every_letter_and_every_word_is_one_token(tmp_path: Path) -> None:
    assert make_tokenizer(tmp_path / "letters", [diversity.LETTERS], size=LETTER_IDS) >= LETTER_IDS
    assert len(plain_ids(load_tokenizer(tmp_path / "letters"), "a>b:cdefghij")) == 12
    world = crosslingual.World(0)
    make_tokenizer(tmp_path / "words", world.tokens(), size=1000)
    tokenizer = load_tokenizer(tmp_path / "words")
    said = [
        plain_ids(tokenizer, world.say(range(crosslingual.CONCEPTS), number))
        for number in range(crosslingual.LANGUAGES)
    ]
    assert [len(ids) for ids in said] == [crosslingual.CONCEPTS] * crosslingual.LANGUAGES
    assert len({token for ids in said for token in ids}) == crosslingual.CONCEPTS * crosslingual.LANGUAGES
    asked, told = plain_ids(tokenizer, "class :" + world.say([0, 1], 3)), plain_ids(tokenizer, ": W X Y Z")
    assert len(asked) == 4 and len(told) == 5


def test_translations_say_the_same_concepts() -> None:
    world = crosslingual.World(0)
    for item in list(islice(world.pretraining(np.random.default_rng(0), True), 40))[1::2]:
        language, words = item.question.split(" :")
        concepts = [int(np.argwhere((world.words == word).any(0))[0, 0]) for word in words.split()]
        assert len(concepts) == crosslingual.LENGTH and item.answer == ":" + world.say(concepts, int(language))


def test_languages_that_are_asked_are_never_tuned() -> None:
    world, rng = crosslingual.World(0), np.random.default_rng(0)
    tuned = {word for item in world.task(range(3), 60, rng) for word in item.question.split()[2:]}
    held_out = {word for item in world.task(crosslingual.HELD_OUT, 60, rng) for word in item.question.split()[2:]}
    assert tuned and held_out and not tuned & held_out
    names = {name for item in islice(world.pretraining(rng, True), 200) for name in item.answer.split()[1:]}
    assert not names & set(crosslingual.CLASSES)
