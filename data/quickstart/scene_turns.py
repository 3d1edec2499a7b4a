"""Questions and orders about a scene, each with its reply: a short answer, or calls with their targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from data.media import encode_mask, encode_png
from data.quickstart.phrasing import ask
from data.quickstart.scenes import COLOURS, Scene, draw_canvas
from data.quickstart.templates import VERBS
from data.records import Part, Target

CALLS = ("ground", "seg", "draw", "edit")
LOOK_UPS = 4  # objects that one "name the colours of ..." asks for
SUMS = 3  # sums that one "name the sums of ..." asks for


@dataclass
class Turn:
    """One question and its reply.

    Args:
        kind: The question type.
        text: What the user writes.
        answer: The reply in words, or None where it consists of calls.
        calls: The reply's calls.
        targets: Target id -> target.
        members: Member name -> bytes.
        meta: What an evaluation wants to know.
    """

    kind: str
    text: str
    answer: str | None = None
    calls: list[Part] = field(default_factory=list)
    targets: dict[str, Target] = field(default_factory=dict)
    members: dict[str, bytes] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def reply(self) -> tuple[Part, ...]:
        """The assistant's content parts."""
        return (Part("text", text=self.answer),) if self.answer is not None else tuple(self.calls)


def png(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as PNG."""
    return encode_png(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))


def object_meta(scene: Scene) -> list[dict[str, Any]]:
    """What a scene shows, bottom first: digit, colour, box, mask and scan of every object."""
    return [
        {
            "digit": item.digit,
            "colour": item.colour,
            "box_xyxy": list(item.box_xyxy),
            "mask": encode_mask(torch.from_numpy(item.mask)),
            "scan": item.scan,
        }
        for item in scene.digits
    ]


def caption_of(scene: Scene) -> str:
    """Like "a red 7, a blue 3 and a white 2", from left to right."""
    return listed([f"a {item.name}" for item in scene.left_to_right()])


def listed(names: Sequence[str]) -> str:
    """Like "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


class Turns:
    """Makes turns about one scene.

    Args:
        scene: The scene.
        split: Whose phrasings and scans to use.
        seed: Seed of the scan split.
        rng: Draws what to ask and how.
    """

    def __init__(self, scene: Scene, split: str, seed: int, rng: np.random.Generator) -> None:
        self.scene, self.split, self.seed, self.rng = scene, split, seed, rng
        self._count = 0

    def make(self, kind: str) -> Turn | None:
        """A turn of a question type, or None where the scene does not allow it."""
        return _MAKERS[kind](self)

    def call(self, task: str, index: int | None = None, ref: str | None = None) -> tuple[Turn, str]:
        """A call with its target, and an imperative that asks for it.

        Args:
            task: One of :data:`CALLS`.
            index: The object, or None to choose one; not used by "draw".
            ref: How to refer to it, or None to choose.
        """
        if task == "draw":
            words = self._draw_words()
            turn = self._draw(words)
        else:
            index = self._choose(range(len(self.scene.digits))) if index is None else index
            words = {"ref": ref or self._refer(index)}
            if task == "edit":
                words["new"] = self._choose([name for name in COLOURS if name != self.scene.digits[index].colour])
            turn = self._on_object(task, index, words)
        turn.text = ask(task, self.split, self.rng, **words)
        return turn, self._choose(VERBS[task]).format(**words)

    def draw_named(self, name: str) -> Turn:
        """The order to draw a digit of a colour, such as "blue 4"."""
        turn = self._draw({"name": name})
        turn.text = ask("draw", self.split, self.rng, name=name)
        return turn

    def _choose(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def _target(self, kind: str, value: Any = None, image: np.ndarray | None = None) -> tuple[str, Turn]:
        """A new target id, and a turn that holds only this target."""
        name, self._count = f"t{self._count}", self._count + 1
        turn = Turn(kind, "")
        if image is None:
            turn.targets[name] = Target(kind, value=value)
        else:
            turn.targets[name] = Target("image", file=f"{name}.png")
            turn.members[f"{name}.png"] = png(image)
        return name, turn

    def _refer(self, index: int) -> str:
        item = self.scene.digits[index]
        ways = [item.name, item.name]
        if len(self.scene.where(digit=item.digit)) == 1:
            ways.append(str(item.digit))
        if len(self.scene.where(colour=item.colour)) == 1:
            ways.append(f"{item.colour} digit")
        return str(self._choose(ways))

    def _draw_words(self) -> dict[str, str]:
        return {"name": f"{self._choose(list(COLOURS))} {int(self.rng.integers(10))}"}

    def _draw(self, words: dict[str, str]) -> Turn:
        colour, digit = words["name"].split()
        pixels, scan = draw_canvas(int(digit), colour, self.split, self.seed, self.rng)
        name, turn = self._target("image", image=pixels)
        turn.kind = "draw"
        turn.calls = [Part("call", task="draw", prompt=words["name"], target=name)]
        turn.meta = {"digit": int(digit), "colour": colour, "scan": scan}
        return turn

    def _on_object(self, task: str, index: int, words: dict[str, str]) -> Turn:
        item = self.scene.digits[index]
        region: tuple[dict[str, Any], ...] = ()
        meta: dict[str, Any] = {"object": index, "digit": item.digit, "colour": item.colour}
        prompt = words["ref"]
        if task == "ground":
            name, turn = self._target("box", list(item.box_xyxy))
            region = ({"type": "region", "box_xyxy": list(item.box_xyxy)},)
        elif task == "seg":
            name, turn = self._target("mask", encode_mask(torch.from_numpy(item.mask)))
        else:
            edited = self.scene.recoloured(index, words["new"], self.rng)
            name, turn = self._target("image", image=edited.pixels())
            prompt = f"{words['ref']} {words['new']}"
            meta["new_colour"] = words["new"]
        turn.kind, turn.meta = task, meta
        turn.calls = [Part("call", task=task, prompt=prompt, groundings=region, target=name)]
        return turn

    def _say(self, kind: str, answer: object, template: str | None = None, **words: object) -> Turn:
        return Turn(kind, ask(template or kind, self.split, self.rng, **words), answer=str(answer))

    def _unique(self, attribute: str) -> list[int]:
        """Objects whose digit (or colour) no other object has."""
        values = [getattr(item, attribute) for item in self.scene.digits]
        return [index for index, value in enumerate(values) if values.count(value) == 1]

    def _colour_pair(self) -> tuple[Any, Any] | None:
        unique = self._unique("colour")
        if len(unique) < 2:
            return None
        first, second = self.rng.permutation(unique)[:2].tolist()
        return self.scene.digits[first], self.scene.digits[second]

    def count(self) -> Turn:
        """How many digits there are."""
        return self._say("count", len(self.scene.digits))

    def count_colour(self) -> Turn:
        """How many digits have a colour."""
        shown = [item.colour for item in self.scene.digits]
        colour = self._choose(list(COLOURS) if self.rng.random() < 0.3 else shown)
        return self._say("count_colour", shown.count(colour), colour=colour)

    def colour(self) -> Turn | None:
        """The colour of a digit that is there once."""
        unique = self._unique("digit")
        if not unique:
            return None
        item = self.scene.digits[self._choose(unique)]
        return self._say("colour", item.colour, digit=item.digit)

    def digit_of_colour(self) -> Turn | None:
        """The digit in a colour that is there once."""
        unique = self._unique("colour")
        if not unique:
            return None
        item = self.scene.digits[self._choose(unique)]
        return self._say("digit_of_colour", item.digit, colour=item.colour)

    def look_ups(self) -> Turn | None:
        """Several digits with their colours, or the reverse, in the order asked for.

        Every word of such a reply has to be found by its content, so that it teaches what one "which digit is red?"
        asks for with several times the tokens to learn from.
        """
        by_digit = self.rng.random() < 0.5
        unique = self._unique("digit" if by_digit else "colour")
        if len(unique) < 2:
            return None
        items = [self.scene.digits[self._choose(unique)] for _ in range(LOOK_UPS)]
        pairs = [(str(item.digit), item.colour) if by_digit else (item.colour, str(item.digit)) for item in items]
        named = listed([asked for asked, _ in pairs])
        answer = ", ".join(f"{asked} {found}" for asked, found in pairs)
        return self._say("look_ups", answer, "colours_of" if by_digit else "digits_of", names=named)

    def sums(self) -> Turn | None:
        """Several sums of two digits named by their colours, dense like :meth:`look_ups`."""
        pairs = [pair for pair in (self._colour_pair() for _ in range(SUMS)) if pair is not None]
        if not pairs:
            return None
        return self._added("sums", "sums_of", [(f"{a.colour} and {b.colour}", a.digit + b.digit) for a, b in pairs])

    def plus(self) -> Turn:
        """Sums of digits as such, whatever the scene shows."""
        pairs = self.rng.integers(0, 10, (SUMS, 2)).tolist()
        return self._added("plus", "plus", [(f"{a} plus {b}", a + b) for a, b in pairs])

    def _added(self, kind: str, template: str, sums: Sequence[tuple[str, int]]) -> Turn:
        """A question for several sums at once: what is added, and its sum, of each."""
        answer = ", ".join(f"{words} {total}" for words, total in sums)
        return self._say(kind, answer, template, names=", ".join(words for words, _ in sums))

    def leftmost(self) -> Turn | None:
        """The leftmost digit, where box and centre agree."""
        order = self.scene.left_to_right()
        if len(order) < 2 or any(item.box_xyxy[0] <= order[0].box_xyxy[0] + 2 for item in order[1:]):
            return None
        return self._say("leftmost", order[0].digit)

    def largest(self) -> Turn | None:
        """The largest digit, where it is clearly so in height and not smaller in area of its box."""
        if len(self.scene.digits) < 2:
            return None
        heights = [item.box_xyxy[3] - item.box_xyxy[1] for item in self.scene.digits]
        order = np.argsort(heights)
        first, second = int(order[-1]), int(order[-2])
        if heights[first] < 1.18 * heights[second] or self.scene.digits[first].size < self.scene.digits[second].size:
            return None
        return self._say("largest", self.scene.digits[first].digit)

    def sum(self) -> Turn | None:
        """The sum of two digits named by their colours."""
        pair = self._colour_pair()
        if pair is None:
            return None
        return self._say("sum", pair[0].digit + pair[1].digit, a=pair[0].colour, b=pair[1].colour)

    def comparison(self) -> Turn | None:
        """Which of two digits is greater, as a colour or as yes or no."""
        return self.greater_which() if self.rng.random() < 0.5 else self.greater_yes_no()

    def greater_which(self) -> Turn | None:
        """Which of two digits is greater: the answer is its colour."""
        pair = self._colour_pair()
        if pair is None or pair[0].digit == pair[1].digit:
            return None
        greater = pair[0] if pair[0].digit > pair[1].digit else pair[1]
        return self._say("comparison", greater.colour, "greater_which", a=pair[0].colour, b=pair[1].colour)

    def greater_yes_no(self) -> Turn | None:
        """Whether one digit is greater than another."""
        pair = self._colour_pair()
        if pair is None or pair[0].digit == pair[1].digit:
            return None
        answer = "yes" if pair[0].digit > pair[1].digit else "no"
        return self._say("comparison", answer, "greater_yes_no", a=pair[0].colour, b=pair[1].colour)

    def exists(self) -> Turn:
        """Whether a digit of a colour is there; wrong ones share the digit or the colour with a right one."""
        item = self.scene.digits[self._choose(range(len(self.scene.digits)))]
        digit, colour = item.digit, item.colour
        if self.rng.random() < 0.5:
            return self._say("exists", "yes", name=item.name)
        while self.scene.where(digit, colour):
            if self.rng.random() < 0.5:
                digit, colour = item.digit, self._choose(list(COLOURS))
            else:
                digit, colour = int(self.rng.integers(10)), item.colour
        return self._say("exists", "no", name=f"{colour} {digit}")

    def caption(self) -> Turn:
        """Every digit with its colour, from left to right."""
        return self._say("caption", caption_of(self.scene))

    def negated(self) -> Turn:
        """A verb that must not be followed, and a question to answer instead; or only the former."""
        index = self._choose(range(len(self.scene.digits)))
        words: dict[str, str] = {"ref": self._refer(index), **self._draw_words(), "new": self._choose(list(COLOURS))}
        verb = self._choose(VERBS[self._choose(CALLS)]).format(**words)
        options: list[tuple[str, object]] = [("how many digits there are", len(self.scene.digits))]
        for item in (self.scene.digits[i] for i in self._unique("digit")):
            options.append((f"what colour the {item.digit} is", item.colour))
        for item in (self.scene.digits[i] for i in self._unique("colour")):
            options.append((f"which digit is {item.colour}", item.digit))
        if self.rng.random() < 0.25:
            return self._say("negated", "all right", "refused", verb=verb)
        clause, answer = self._choose(options)
        return self._say("negated", answer, verb=verb, clause=clause)

    def refused_drawing(self) -> Turn:
        """The order "do not draw a blue 4", which needs no image."""
        return self._say(
            "negated", "all right", "refused", verb=self._choose(VERBS["draw"]).format(**self._draw_words())
        )

    def two(self) -> Turn:
        """Two calls in one reply."""
        order = self.rng.permutation(len(self.scene.digits)).tolist()
        first, verb = self.call(self._choose(CALLS), order[0])
        second, other = self.call(self._choose(CALLS), order[-1])
        text = ask("two", self.split, self.rng, a=verb, b=other)
        return Turn(
            "two",
            text,
            calls=first.calls + second.calls,
            targets=first.targets | second.targets,
            members=first.members | second.members,
        )


def _one_call(task: str) -> Callable[[Turns], Turn | None]:
    return lambda turns: turns.call(task)[0]


_MAKERS: dict[str, Callable[[Turns], Turn | None]] = {
    "count": Turns.count,
    "count_colour": Turns.count_colour,
    "colour": Turns.colour,
    "digit_of_colour": Turns.digit_of_colour,
    "look_ups": Turns.look_ups,
    "sums": Turns.sums,
    "plus": Turns.plus,
    "leftmost": Turns.leftmost,
    "largest": Turns.largest,
    "sum": Turns.sum,
    "comparison": Turns.comparison,
    "greater_which": Turns.greater_which,
    "greater_yes_no": Turns.greater_yes_no,
    "exists": Turns.exists,
    "caption": Turns.caption,
    "negated": Turns.negated,
    "two": Turns.two,
    **{task: _one_call(task) for task in CALLS},
}
