"""The benchmark routing: which calls does a prompt need, in which order, or none although it sounds like it."""

from __future__ import annotations

from data.quickstart.graphs import link_turn, match_turn, node_turn
from data.quickstart.images import EMPTY_SCENE, random_scene
from data.quickstart.modules import FAMILIES, ModuleGraph
from data.quickstart.record_parts import QuickstartDraft, record_rng
from data.quickstart.scene_turns import CALLS, Turn, Turns
from data.records import Record

# Of twenty prompts: six need no call (five of these name objects, verbs or both), two need two, twelve need one.
CYCLE = (
    "negated",
    "ground",
    "seg",
    "two",
    "exists",
    "draw",
    "node_class",
    "edit",
    "negated",
    "ground",
    "link",
    "asked",
    "seg",
    "two",
    "draw_without_image",
    "edit",
    "refused_drawing",
    "node_class",
    "match",
    "link",
)
_ASKED = ("colour", "digit_of_colour", "count_colour", "comparison")


def routing(modules: ModuleGraph, split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """A single-turn prompt; the kinds of :data:`CYCLE` in turn, ``meta.num_calls`` says how many calls it needs."""
    rng = record_rng(seed, split, "routing", index)
    draft = QuickstartDraft("routing", split, index)
    kind, number = CYCLE[index % len(CYCLE)], index // len(CYCLE)
    if kind == "node_class":
        node_turn(draft, modules, seed, rng, list(FAMILIES)[number % len(FAMILIES)])
    elif kind == "link":
        link_turn(draft, modules, seed, rng, number % 2 == 0)
    elif kind == "match":
        match_turn(draft, modules, seed, rng, number)
    elif kind in ("draw_without_image", "refused_drawing"):
        turns = Turns(EMPTY_SCENE, split, seed, rng)
        draft.add_turn(turns.refused_drawing() if kind == "refused_drawing" else turns.call("draw")[0])
    else:
        turn: Turn | None = None
        while turn is None:
            scene = random_scene(split, seed, rng)
            turn = Turns(scene, split, seed, rng).make(_ASKED[number % len(_ASKED)] if kind == "asked" else kind)
        draft.add_scene(scene)
        draft.add_turn(turn, ["image"])
    calls = [part for part in draft.messages[-1].content if part.type == "call"]
    expected = 2 if kind == "two" else int(kind in (*CALLS, "draw_without_image", "node_class", "link"))
    assert len(calls) == expected
    draft.meta |= {"question_type": kind, "num_calls": len(calls)}
    return draft.finish()
