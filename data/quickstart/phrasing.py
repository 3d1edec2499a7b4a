"""How the quickstart asks: several phrasings of every question, those of the three splits disjoint.

A test phrasing uses only words that training phrasings use too, in another arrangement: the tokenizer and the language
model of the quickstart know no other words. In training the phrasings are also dressed at random ("please ...", "... in
the picture"). Otherwise a small word that only some tasks' phrasings have stands for the task: "please" was in training
phrasings of two tasks, and a model trained on them answered "please turn the 5 green" with one of these, always.
"""

from __future__ import annotations

import numpy as np

from data.quickstart.templates import PHRASINGS

_WHOLE = ("negated", "refused", "two")  # these frame other phrasings themselves
_KEPT_APART = frozenset(text for item in PHRASINGS.values() for text in (*item.val, *item.test))
_IMPERATIVES = frozenset(
    "add answer change classify count cut describe draw find give listen locate make match name order paint point say "
    "segment show tell transcribe translate turn write".split()
)
_REQUESTS = ("please {}", "now {}", "{}, please", "just {}", "now please {}")
_QUESTIONS = ("tell me, {}", "now {}", "please tell me, {}", "just tell me, {}")
_PLACES = {
    **dict.fromkeys(("count", "count_colour", "colour", "digit_of_colour", "leftmost", "largest"), "in the picture"),
    **dict.fromkeys(("sum", "greater_which", "greater_yes_no", "exists", "ground", "seg", "edit"), "in the picture"),
    **dict.fromkeys(("speakers", "voices", "spoken_question"), "in the clip"),
    **dict.fromkeys(("node_class", "link", "match"), "in the graph"),
}


def ask(kind: str, split: str, rng: np.random.Generator, **words: object) -> str:
    """A random phrasing of a question with the words filled in.

    Args:
        kind: A key of :data:`PHRASINGS`.
        split: "train", "val" or "test".
        rng: Draws the template.
        **words: What the template's braces stand for.
    """
    templates = PHRASINGS[kind].of(split)
    template = templates[int(rng.integers(len(templates)))]
    if split == "train":
        template = dressed(kind, template, rng)
    return template.format(**words)


def dressed(kind: str, template: str, rng: np.random.Generator) -> str:
    """A training template with what may stand around any of them; never a template of another split."""
    if kind in _WHOLE:
        return template
    changed = template
    place = _PLACES.get(kind)
    if place is not None and place.split()[-1] not in changed and rng.random() < 0.2:
        changed = f"{changed[:-1]} {place}{changed[-1]}"
    if rng.random() < 0.35:
        frames = _REQUESTS if changed.split()[0] in _IMPERATIVES else _QUESTIONS
        frame = frames[int(rng.integers(len(frames)))]
        changed = frame.format(changed[:-1]) + changed[-1]
    return template if changed in _KEPT_APART else changed
