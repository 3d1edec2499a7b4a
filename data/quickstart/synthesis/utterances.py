"""What is said: digit strings, short commands and facts, in English and German."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.quickstart.record_parts import bucket

DIGITS = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "de": ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"),
}
# English and German; German objects stand in the accusative, German places in the accusative of direction.
VERBS = (
    ("bring", "bring"),
    ("carry", "trag"),
    ("push", "schieb"),
    ("throw", "wirf"),
    ("roll", "roll"),
    ("pull", "zieh"),
    ("put", "leg"),
)
OBJECTS = (
    ("the ball", "den ball"),
    ("the cup", "die tasse"),
    ("the book", "das buch"),
    ("the key", "den schlüssel"),
    ("the lamp", "die lampe"),
    ("the box", "die kiste"),
    ("the apple", "den apfel"),
    ("the hat", "den hut"),
    ("the chair", "den stuhl"),
    ("the bottle", "die flasche"),
    ("the bread", "das brot"),
    ("the pillow", "das kissen"),
)
PLACES = (
    ("onto the table", "auf den tisch"),
    ("under the bed", "unter das bett"),
    ("into the kitchen", "in die küche"),
    ("behind the door", "hinter die tür"),
    ("next to the window", "neben das fenster"),
    ("into the garden", "in den garten"),
    ("onto the roof", "auf das dach"),
    ("under the bench", "unter die bank"),
    ("behind the tree", "hinter den baum"),
    ("next to the car", "neben das auto"),
)
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
CONTAINERS = ("box", "bag", "basket", "bowl")
CONTENTS = ("apples", "books", "keys", "cups", "balls", "hats")
THINGS = ("ball", "cup", "book", "key", "lamp", "apple", "hat", "chair", "bottle", "box")
WHERE = ("under the bed", "behind the door", "in the kitchen", "in the garden", "on the table", "on the roof")
FACT_KINDS = ("number", "colour", "place")


@dataclass(frozen=True)
class Utterance:
    """Something to say.

    Args:
        text: As transcribed: lower case, no punctuation.
        language: "en" or "de".
        kind: "digits" or "command".
        translation: Its German, if it is English.
        spoken: The same with punctuation, for the voice.
    """

    text: str
    language: str
    kind: str
    translation: str | None = None
    spoken: str | None = None


@dataclass(frozen=True)
class Fact:
    """A spoken statement and a spoken question about it.

    Args:
        statement: The statement (or two), with punctuation.
        question: The question.
        answer: Its answer.
        kind: One of :data:`FACT_KINDS`.
    """

    statement: str
    question: str
    answer: str
    kind: str

    @property
    def transcript(self) -> str:
        """Both, lower case, without punctuation."""
        return plain(f"{self.statement} {self.question}")


def plain(text: str) -> str:
    """Lower case, no punctuation."""
    return " ".join("".join(c for c in text.lower() if c.isalnum() or c in " '").split())


def _sampled(split: str, draw: Callable[[], Utterance]) -> Utterance:
    """The first drawn utterance whose text belongs to the split; German and English of one thing go together."""
    while True:
        utterance = draw()
        if bucket(utterance.translation or utterance.text) == split:
            return utterance


def digit_string(language: str, split: str, rng: np.random.Generator) -> Utterance:
    """Three to five digits, read one by one."""

    def draw() -> Utterance:
        digits = rng.integers(0, 10, int(rng.integers(3, 6))).tolist()
        words = {name: " ".join(table[d] for d in digits) for name, table in DIGITS.items()}
        translation = words["de"] if language == "en" else None
        return Utterance(words[language], language, "digits", translation, ", ".join(words[language].split()))

    return _sampled(split, draw)


def command(language: str, split: str, rng: np.random.Generator) -> Utterance:
    """A verb, an object and a place."""

    def draw() -> Utterance:
        parts = [table[int(rng.integers(len(table)))] for table in (VERBS, OBJECTS, PLACES)]
        english, german = (" ".join(part[side] for part in parts) for side in (0, 1))
        if language == "en":
            return Utterance(english, "en", "command", german)
        return Utterance(german, "de", "command")

    return _sampled(split, draw)


def utterance(kind: str, language: str, split: str, rng: np.random.Generator) -> Utterance:
    """A digit string ("digits") or a command ("command")."""
    return digit_string(language, split, rng) if kind == "digits" else command(language, split, rng)


def fact(kind: str, answer: int, rng: np.random.Generator, distractor: bool) -> Fact:
    """A fact with a question.

    Args:
        kind: One of :data:`FACT_KINDS`.
        answer: Number of the wanted answer, taken modulo their number.
        rng: Draws the rest.
        distractor: Whether a second thing is stated too.
    """
    if kind == "number":
        value = DIGITS["en"][2 + answer % 8]
        container = CONTAINERS[int(rng.integers(len(CONTAINERS)))]
        first, second = (CONTENTS[i] for i in rng.permutation(len(CONTENTS))[:2])
        stated = [f"{value} {first}"]
        if distractor:
            stated.insert(int(rng.integers(2)), f"{DIGITS['en'][int(rng.integers(2, 10))]} {second}")
        statement = f"the {container} holds {' and '.join(stated)}."
        return Fact(statement, f"how many {first} are there?", str(2 + answer % 8), kind)
    values = COLOURS if kind == "colour" else WHERE
    value = values[answer % len(values)]
    first, second = (THINGS[i] for i in rng.permutation(len(THINGS))[:2])
    stated = [f"the {first} is {value}"]
    if distractor:
        other = values[int(rng.integers(len(values)))]
        stated.insert(int(rng.integers(2)), f"the {second} is {other}")
    question = f"what colour is the {first}?" if kind == "colour" else f"where is the {first}?"
    return Fact(" and ".join(stated) + ".", question, value, kind)


def fact_answers(kind: str) -> int:
    """How many different answers a kind of fact has."""
    return {"number": 8, "colour": len(COLOURS), "place": len(WHERE)}[kind]
