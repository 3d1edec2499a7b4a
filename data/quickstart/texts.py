"""Records of text alone: scenes and clips in words, from which the language model learns to read before it sees.

What stands in a picture or is said in a clip is written out, and the questions are those that will be asked about the
media: looking up by colour or digit, adding, comparing, translating, copying words into calls. Learned from words these
take minutes; a language model that starts with the media must find them together with the meaning of the features.

Looking up takes longest. For some 700,000 tokens of nothing else the loss stands at choosing any object of the scene,
then falls to naught (docs/LOG.md); thinned by other questions it never does. So some texts ask for nothing else, but
for sums of what was looked up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data.quickstart.images import random_pairs
from data.quickstart.phrasing import ask
from data.quickstart.record_parts import QuickstartDraft, record_rng
from data.quickstart.scene_turns import Turn, Turns, caption_of
from data.quickstart.scenes import COLOURS, Digit, Scene
from data.quickstart.speech import numbers_as_words
from data.quickstart.synthesis.utterances import FACT_KINDS, fact, plain, utterance
from data.quickstart.templates import VERBS
from data.records import Part, Record

TURNS_PER_TEXT = 8
UTTERANCES_PER_TEXT = 4
# Question types about a scene in words, with their weights.
SCENE_KINDS: dict[str, float] = {
    "count": 0.8,
    "count_colour": 0.6,
    "colour": 1.6,
    "digit_of_colour": 1.6,
    "leftmost": 0.8,
    "sum": 2.0,
    "comparison": 1.6,
    "exists": 0.8,
    "caption": 1.0,
    "draw": 1.2,
    "two": 0.8,
    "negated": 1.2,
    "look_ups": 1.6,
}
LOOK_UP_KINDS: dict[str, float] = {
    "colour": 1.0,
    "digit_of_colour": 1.0,
    "look_ups": 2.0,
    "plus": 0.5,
    "sums": 1.0,
    "sum": 0.5,
}
_COLOURS = tuple(COLOURS)
_SCENE_SHARE = 0.65
# Of questions, those written as a voice would say them; fewer where it would put off the jump (docs/LOG.md).
_SPOKEN_SHARE, _SPOKEN_LOOK_UPS = 0.25, 0.12


def texts(split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """A training dialogue about a scene in words, or a few utterances in words."""
    rng = record_rng(seed, split, "texts", index)
    draft = QuickstartDraft("texts", split, index)
    if rng.random() < _SCENE_SHARE:
        _about_scene(draft, seed, rng, SCENE_KINDS, _SPOKEN_SHARE)
    else:
        _about_utterances(draft, rng)
    return draft.finish()


def look_ups(split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """A training dialogue of look-ups and their sums alone, about a scene in words."""
    rng = record_rng(seed, split, "look_ups", index)
    draft = QuickstartDraft("look_ups", split, index)
    _about_scene(draft, seed, rng, LOOK_UP_KINDS, _SPOKEN_LOOK_UPS, fewest=2)
    return draft.finish()


def worded_scene(rng: np.random.Generator, fewest: int = 1) -> Scene:
    """One (or ``fewest``) to four digits from left to right, that nobody painted."""
    pairs = random_pairs(int(rng.integers(fewest, 5)), rng)
    blank = np.zeros((1, 1), np.float32)
    digits = [
        Digit(-1, digit, colour, COLOURS[colour], blank, 8.0, blank > 0, (10.0 * place, 0.0, 10.0 * place + 8.0, 8.0))
        for place, (digit, colour) in enumerate(pairs)
    ]
    return Scene(np.zeros((1, 1, 3), np.float32), tuple(digits))


def _about_scene(
    draft: QuickstartDraft,
    seed: int,
    rng: np.random.Generator,
    kinds: Mapping[str, float],
    spoken_share: float,
    fewest: int = 1,
) -> None:
    weights = np.array(list(kinds.values()))
    made: list[Turn] = []
    while not made:  # a red 7, a red 3, a blue 7 and a blue 3 leave nothing to look up
        scene = worded_scene(rng, fewest)
        turns = Turns(scene, draft.split, seed, rng)
        order = rng.choice(list(kinds), 2 * TURNS_PER_TEXT, p=weights / weights.sum())
        made = [turn for turn in (_turn(turns, str(kind), draft.split, rng) for kind in order) if turn is not None]
    for place, turn in enumerate(made[:TURNS_PER_TEXT]):
        if turn.answer is not None and rng.random() < spoken_share:  # as a voice would say it
            turn.text = f"{ask('spoken_question', draft.split, rng)} {plain(numbers_as_words(turn.text))}"
        if place == 0:
            turn.text = f"{caption_of(scene)}. {turn.text}"
        draft.add_turn(turn)
    draft.meta["question_types"] = [turn.kind for turn in made[:TURNS_PER_TEXT]]


def _turn(turns: Turns, kind: str, split: str, rng: np.random.Generator) -> Turn | None:
    """A turn; drawings are called for and not drawn, since no head learns here."""
    if kind not in ("draw", "two"):
        return turns.make(kind)
    names = [f"{_COLOURS[int(rng.integers(len(_COLOURS)))]} {int(rng.integers(10))}" for _ in range(2)]
    if kind == "draw":
        return _drawing("draw", ask("draw", split, rng, name=names[0]), names[:1])
    verbs = [VERBS["draw"][int(rng.integers(len(VERBS["draw"])))].format(name=name) for name in names]
    return _drawing("two", ask("two", split, rng, a=verbs[0], b=verbs[1]), names)


def _drawing(kind: str, text: str, names: Sequence[str]) -> Turn:
    return Turn(kind, text, calls=[Part("call", task="draw", prompt=name) for name in names])


def _about_utterances(draft: QuickstartDraft, rng: np.random.Generator) -> None:
    kinds: list[str] = []
    for _ in range(UTTERANCES_PER_TEXT):
        kind = str(rng.choice(["translate", "transcribe", "spoken_question"], p=[0.4, 0.3, 0.3]))
        if kind == "spoken_question":
            said = fact(FACT_KINDS[int(rng.integers(len(FACT_KINDS)))], int(rng.integers(24)), rng, rng.random() < 0.5)
            words, answer = said.transcript, said.answer
        else:
            language = "en" if kind == "translate" or rng.random() < 0.6 else "de"
            item = utterance(("digits", "command")[int(rng.random() < 0.6)], language, draft.split, rng)
            words, answer = item.text, item.text
            if kind == "translate":
                assert item.translation is not None
                answer = item.translation
        draft.ask(f"{ask(kind, draft.split, rng)} {words}", [Part("text", text=answer)])
        kinds.append(kind)
    draft.meta["question_types"] = kinds
