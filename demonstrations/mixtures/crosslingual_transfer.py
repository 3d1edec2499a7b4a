"""Paper 64: a task tuned in one language is solved in others known from pretraining; more languages help further.

The languages are relabelled vocabularies over the same concepts. All are pretrained on sentences and on translations
between them. The task (https://arxiv.org/abs/2211.01786 tunes many) is to name the class of every word, with class
names that pretraining never showed; it is tuned in one, two or three languages with the same number of examples, and
tested in two others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np

from demonstrations.demonstration import Claim, Demonstration, Metrics
from demonstrations.text_model import Example, TextModel, answers, make_tokenizer, train, write_examples

LANGUAGES = 5
HELD_OUT = (3, 4)
CONCEPTS = 24
CLASSES = ("W", "X", "Y", "Z")
LENGTH = 5
PRETRAINING, TUNING, TEST = 8_000, 2_000, 200
PRETRAINING_STEPS, TUNING_STEPS = 400, 150
MODEL = TextModel(num_layers=3, max_tokens=2048)
TUNED = replace(MODEL, muon=0.01, warmup_steps=10)
"""A lower rate: Muon moves every matrix by all of it, however little there is left to learn."""


class World:
    """Concepts, their words in every language, and their classes."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"] + [a + b for a in "bdfgklmnprst" for b in "äöü"]
        syllables += [a + b for a in "vwzhj" for b in "aeiouäöü"]
        chosen = rng.permutation([a + b for a in syllables for b in syllables])[: LANGUAGES * CONCEPTS]
        self.words = np.array(chosen).reshape(LANGUAGES, CONCEPTS)
        self.classes = rng.permutation(np.arange(CONCEPTS) % len(CLASSES))
        transitions = rng.dirichlet(np.full(CONCEPTS, 0.2), CONCEPTS)
        self.transitions = 0.8 * transitions + 0.2 / CONCEPTS

    def sentence(self, rng: np.random.Generator) -> list[int]:
        """Concepts of a Markov chain."""
        concepts = [int(rng.integers(CONCEPTS))]
        while len(concepts) < LENGTH:
            concepts.append(int(rng.choice(CONCEPTS, p=self.transitions[concepts[-1]])))
        return concepts

    def say(self, concepts: Sequence[int], language: int) -> str:
        """A sentence in a language, each word with a space before it: so it is one token wherever it stands."""
        return "".join(f" {word}" for word in self.words[language][list(concepts)])

    def pretraining(self, rng: np.random.Generator, aligned: bool) -> Iterator[Example]:
        """Sentences to continue in their language and, if aligned, translations."""
        tags = {"stage": "aligned" if aligned else "monolingual"}
        for number in range(PRETRAINING):
            concepts, languages = self.sentence(rng), rng.permutation(LANGUAGES)
            first, second = int(languages[0]), int(languages[1])
            if aligned and number % 2:
                yield Example(f"{second} :{self.say(concepts, first)}", f":{self.say(concepts, second)}", tags)
            else:
                yield Example(f"{first} :{self.say(concepts[:1], first)}", f":{self.say(concepts[1:], first)}", tags)

    def task(self, languages: Sequence[int], count: int, rng: np.random.Generator) -> Iterator[Example]:
        """Name the class of every word."""
        for number in range(count):
            language, concepts = languages[number % len(languages)], self.sentence(rng)
            names = " ".join(CLASSES[self.classes[concept]] for concept in concepts)
            tags = {"stage": "task", "languages": len(languages)}
            yield Example(f"class :{self.say(concepts, language)}", f": {names}", tags)

    def tokens(self) -> list[str]:
        """Text of which a tokenizer makes one token per word."""
        return [*(self.say(range(CONCEPTS), language) for language in range(LANGUAGES)), "class : W X Y Z"]


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Pretrain (once per kind of pretraining), tune, and ask in languages that were not tuned."""
    world, shared = World(seed), folder.parent / f"data-{seed}"
    for number, aligned in enumerate((True, False)):
        name = "aligned" if aligned else "monolingual"
        write_examples(shared, name, world.pretraining(np.random.default_rng([seed, 1, number]), aligned))
    for count in (1, 2, 3):
        made = world.task(range(count), TUNING, np.random.default_rng([seed, 2, count]))
        write_examples(shared, f"task{count}", made)
    vocab_size = make_tokenizer(shared / "tokenizer", world.tokens(), size=1000)

    def fit(model: TextModel, where: dict[str, object], steps: int, folder: Path, base: Path | None = None) -> Path:
        data = {"sources": [{"path": str(shared), "where": where}]}
        start = [] if base is None else [{"path": str(base)}]
        return train(model, shared / "tokenizer", vocab_size, data, steps, seed, folder, start)

    kind = "monolingual" if arm == "tuned_1_not_aligned" else "aligned"
    base = folder.parent / f"pretrained-{kind}-{seed}"
    checkpoint = base / "checkpoint"
    if not checkpoint.is_dir():
        fit(MODEL, {"stage": kind}, PRETRAINING_STEPS, base)
    if arm != "untuned":
        where = {"stage": "task", "languages": int(arm.split("_")[1])}
        checkpoint = fit(TUNED, where, TUNING_STEPS, folder, checkpoint)
    rng = np.random.default_rng([seed, 3])
    held_out = list(world.task(HELD_OUT, TEST, rng))
    tuned = list(world.task([0], TEST, rng))
    classes = [name for item in held_out for name in _words(item.answer)]
    return {
        "held_out_languages": _accuracy(checkpoint, held_out),
        "tuned_language": _accuracy(checkpoint, tuned),
        "constant": max(classes.count(name) for name in CLASSES) / len(classes),
    }


def _words(answer: str) -> list[str]:
    return answer.removeprefix(":").split()


def _accuracy(checkpoint: Path, items: Sequence[Example]) -> float:
    """Share of the words whose class is named at their place."""
    scores = []
    for item, reply in zip(items, answers(checkpoint, items), strict=True):
        given, wanted = _words(reply.strip()), _words(item.answer)
        scores.append(fmean(place < len(given) and given[place] == name for place, name in enumerate(wanted)))
    return fmean(scores)


DEMONSTRATION = Demonstration(
    paper=64,
    address="https://arxiv.org/abs/2211.01786",
    shows="a task tuned in one to three of five pretrained languages, with as many examples, and tested in two others",
    arms={
        "untuned": "pretrained on all languages, never tuned",
        "tuned_1": "tuned in one language",
        "tuned_2": "tuned in two languages, as many examples in all",
        "tuned_3": "tuned in three languages, as many examples in all",
        "tuned_1_not_aligned": "control: tuned in one language after pretraining without translations",
    },
    measure=measure,
    claims=[
        Claim(
            "one tuned language transfers: in languages never tuned, .20 above untuned and the most frequent class",
            lambda mean: (
                mean("tuned_1", "held_out_languages")
                >= 0.2 + max(mean("untuned", "held_out_languages"), mean("tuned_1", "constant"))
            ),
        ),
        Claim(
            "three tuned languages transfer better than one",
            lambda mean: mean("tuned_3", "held_out_languages") > mean("tuned_1", "held_out_languages"),
        ),
        Claim(
            "without translations in pretraining one tuned language transfers less",
            lambda mean: mean("tuned_1_not_aligned", "held_out_languages") < mean("tuned_1", "held_out_languages"),
        ),
    ],
    controls={
        "constant": ("tuned_1", "constant"),
        "untuned": ("untuned", "held_out_languages"),
        "not_aligned": ("tuned_1_not_aligned", "held_out_languages"),
    },
    controls_na={"blind": "without the words there is no task"},
)
