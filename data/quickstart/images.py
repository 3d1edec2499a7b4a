"""Records over images: training dialogues, and the benchmarks image_qa, box, mask, draw, edit and caption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.quickstart.record_parts import QuickstartDraft, record_rng
from data.quickstart.scene_turns import Turn, Turns
from data.quickstart.scenes import COLOURS, Scene, draw_scene
from data.records import Record

Pair = tuple[int, str]
TURNS_PER_SCENE = 7
# Question types of the training dialogues, with their weights.
TRAIN_KINDS: dict[str, float] = {
    "count": 1.0,
    "count_colour": 0.6,
    "colour": 1.3,
    "digit_of_colour": 1.5,
    "leftmost": 1.2,
    "largest": 1.2,
    "look_ups": 1.6,
    "sum": 2.0,
    "comparison": 1.6,
    "exists": 0.8,
    "caption": 1.0,
    "ground": 1.6,
    "seg": 1.4,
    "edit": 1.6,
    "draw": 0.4,
    "negated": 1.4,
    "two": 1.2,
}
QA_KINDS = ("count", "colour", "digit_of_colour", "leftmost", "largest", "sum", "comparison")
EMPTY_SCENE = Scene(np.zeros((1, 1, 3), np.float32), ())
_COLOURS = tuple(COLOURS)


def random_pairs(number: int, rng: np.random.Generator, given: Sequence[Pair] = ()) -> list[Pair]:
    """Different (digit, colour) pairs, the given ones first; a colour repeats in about a third of the scenes."""
    pairs = list(given)
    repeat = rng.random() < 0.35
    while len(pairs) < number:
        pair = (int(rng.integers(10)), _COLOURS[int(rng.integers(len(_COLOURS)))])
        if pair not in pairs and (repeat or pair[1] not in [colour for _, colour in pairs]):
            pairs.append(pair)
    return pairs


def random_scene(
    split: str, seed: int, rng: np.random.Generator, number: int | None = None, given: Sequence[Pair] = ()
) -> Scene:
    """A scene of 1 to 4 digits, painted in random order."""
    if number is None:
        number = int(rng.choice(4, p=(0.13, 0.25, 0.31, 0.31))) + 1
    pairs = random_pairs(max(number, len(given)), rng, given)
    return draw_scene([pairs[i] for i in rng.permutation(len(pairs))], split, seed, rng)


def scenes(split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """A training dialogue: seven turns of different question types about one scene."""
    rng = record_rng(seed, split, "scenes", index)
    given: list[Pair] = []
    if rng.random() < 0.5:  # sums are triangular otherwise: 0 and 18 would come once in a hundred
        total = int(rng.integers(19))
        first = int(rng.integers(max(0, total - 9), min(9, total) + 1))
        colours = rng.permutation(_COLOURS)
        given = [(first, str(colours[0])), (total - first, str(colours[1]))]
    scene = random_scene(split, seed, rng, given=given)
    draft = QuickstartDraft("scenes", split, index)
    draft.add_scene(scene)
    turns = Turns(scene, split, seed, rng)
    weights = np.array(list(TRAIN_KINDS.values()))
    order = rng.choice(list(TRAIN_KINDS), size=len(weights), replace=False, p=weights / weights.sum())
    made: list[Turn] = []
    for kind in order:
        turn = turns.make(str(kind))
        if turn is not None:
            draft.add_turn(turn, ["image"] if not made else [])
            made.append(turn)
        if len(made) == TURNS_PER_SCENE:
            break
    draft.meta["question_types"] = [turn.kind for turn in made]
    return draft.finish()


def draw(split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """The order "draw a blue 4", without media; digits and colours in turn. In training, one in twelve says not to."""
    rng = record_rng(seed, split, "draw", index)
    turns = Turns(EMPTY_SCENE, split, seed, rng)
    if split == "train" and rng.random() < 1 / 12:
        return single_turn("draw", split, index, None, turns.refused_drawing())
    turn = turns.draw_named(f"{_COLOURS[(index // 10) % len(_COLOURS)]} {index % 10}")
    return single_turn("draw", split, index, None, turn)


def image_qa(split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """A question about a scene; types in turn, and within each type the answers in turn."""
    rng = record_rng(seed, split, "image_qa", index)
    kind, turn_number = QA_KINDS[index % len(QA_KINDS)], index // len(QA_KINDS)
    scene, turn = answered_scene(kind, turn_number, split, seed, rng)
    return single_turn("image_qa", split, index, scene, turn)


def answered_scene(kind: str, number: int, split: str, seed: int, rng: np.random.Generator) -> tuple[Scene, Turn]:
    """A scene and a question about it; within a type, the answers come in turn.

    Args:
        kind: One of :data:`QA_KINDS`, or "look_ups".
        number: Number of the question within its type: fixes the answer, but that of look-ups.
        split: Whose scans and phrasings to use.
        seed: Seed of the scan split.
        rng: Draws everything else.
    """
    while True:
        if kind == "look_ups":  # several answers, none in turn
            scene = random_scene(split, seed, rng, int(rng.integers(2, 5)))
            turn = Turns(scene, split, seed, rng).look_ups()
        else:
            scene, turn = _answered(kind, number, split, seed, rng)
        if turn is not None:
            return scene, turn


def _answered(kind: str, number: int, split: str, seed: int, rng: np.random.Generator) -> tuple[Scene, Turn | None]:
    """A scene, and a question about it with the answer that stands in turn; None where this scene has another."""
    wanted: object
    given: list[Pair] = []
    colours = [str(colour) for colour in rng.permutation(_COLOURS)]
    size = int(rng.integers(2, 5))
    maker = kind
    if kind == "count":
        wanted = size = number % 4 + 1
    elif kind == "colour":
        wanted, size = _COLOURS[number % 6], int(rng.integers(1, 5))
        given = [(int(rng.integers(10)), str(wanted))]
    elif kind == "sum":
        wanted = number % 19
        first = int(rng.integers(max(0, wanted - 9), min(9, wanted) + 1))
        given = [(first, colours[0]), (wanted - first, colours[1])]
    elif kind == "comparison":
        maker = "greater_which" if number % 2 else "greater_yes_no"
        wanted = _COLOURS[(number // 2) % 6] if number % 2 else ("yes", "no")[(number // 2) % 2]
    else:
        wanted = number % 10
        given = [(number % 10, colours[0])]
    scene = random_scene(split, seed, rng, size, given)
    for _ in range(6):
        turn = Turns(scene, split, seed, rng).make(maker)
        if turn is not None and turn.answer == str(wanted):
            return scene, turn
    return scene, None


def box(split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """The question "where is the red 7"."""
    return _about_object("box", "ground", split, index, seed)


def mask(split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """The order "cut out the red 7"."""
    return _about_object("mask", "seg", split, index, seed)


def edit(split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """The order "make the 7 green"."""
    return _about_object("edit", "edit", split, index, seed)


def caption(split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """The order "describe the picture", for 1 to 4 digits in turn."""
    rng = record_rng(seed, split, "caption", index)
    scene = random_scene(split, seed, rng, index % 4 + 1)
    return single_turn("caption", split, index, scene, Turns(scene, split, seed, rng).caption())


def captions(split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """For training, beside the dialogues: a caption, and objects looked up by digit or colour, in random order."""
    rng = record_rng(seed, split, "captions", index)
    scene = random_scene(split, seed, rng, index % 4 + 1)
    draft = QuickstartDraft("captions", split, index)
    draft.add_scene(scene)
    turns = Turns(scene, split, seed, rng)
    made = [turns.make(kind) for kind in ("caption", "look_ups", "look_ups")]
    kept = [turn for turn in made if turn is not None]
    asked = [kept[number] for number in rng.permutation(len(kept))]
    for place, turn in enumerate(asked):
        draft.add_turn(turn, [] if place else ["image"])
    draft.meta["question_types"] = [turn.kind for turn in asked]
    return draft.finish()


def _about_object(prefix: str, task: str, split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """A call about one object; its digit in turn, in scenes of 1 to 4 digits in turn."""
    rng = record_rng(seed, split, prefix, index)
    given = (index % 10, _COLOURS[int(rng.integers(len(_COLOURS)))])
    scene = random_scene(split, seed, rng, (index // 10) % 4 + 1, [given])
    turn, _ = Turns(scene, split, seed, rng).call(task, scene.where(*given)[0])
    return single_turn(prefix, split, index, scene, turn)


def single_turn(
    prefix: str, split: str, index: int, scene: Scene | None, turn: Turn
) -> tuple[Record, dict[str, bytes]]:
    """A record of one turn, about a scene or without media."""
    draft = QuickstartDraft(prefix, split, index)
    if scene is not None:
        draft.add_scene(scene)
    draft.add_turn(turn, [] if scene is None else ["image"])
    draft.meta |= {"question_type": turn.kind, **turn.meta}
    if turn.answer is not None:
        draft.meta["answer"] = turn.answer
    return draft.finish()
