"""Prompts of catalogue rows: lines with fields in braces, filled from an item."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from data.records import Part
from eval.benchmarks.reader import Item, MediaFile, Shown

Content = str | Sequence[str | Shown]
_FIELD = re.compile(r"\{([a-z_]\w*)\}")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Prompt:
    """Lines that name fields in braces, such as ``{question}``.

    A line of which a field is missing or empty is left out: one prompt serves questions with and without a hint.
    Braces are filled from the item's fields and mean nothing else; what they are filled with is not searched again.

    Args:
        lines: In order; joined by line breaks.
        option: How an option of a multiple choice is written.
    """

    def __init__(self, lines: Sequence[str], option: str = "{letter}. {text}") -> None:
        self.lines = (lines,) if isinstance(lines, str) else tuple(lines)
        self.option = option

    def parts(self, item: Item) -> tuple[Part, ...]:
        """The user's turn: media that no field places first, then the words with the others among them.

        Raises:
            ValueError: If a field names a medium that the item does not have.
        """
        pieces: list[str | Shown] = []
        for line in self.lines:
            filled = self._fill(line, item)
            if filled is not None:
                pieces += ["\n", *filled] if pieces else filled
        shown = {piece.media for piece in pieces if isinstance(piece, Shown)}
        unknown = sorted(shown - set(item.media))
        if unknown:
            raise ValueError(f"item '{item.key}': expected media {sorted(item.media)} in its fields, got {unknown}")
        before = [Shown(name) for name in item.media if name not in shown]
        return tuple(_joined([*before, *pieces], item.media))

    def _fill(self, line: str, item: Item) -> list[str | Shown] | None:
        filled: list[str | Shown] = []
        end = 0
        for match in _FIELD.finditer(line):
            value = item.fields.get(match[1])
            if not value:
                return None
            filled += [line[end : match.start()], *self._written(value)]
            end = match.end()
        return [*filled, line[end:]]

    def _written(self, value: Content | list[Content]) -> list[str | Shown]:
        if isinstance(value, str):
            return [value]
        if isinstance(value, tuple):
            return list(value)
        written: list[str | Shown] = []
        if len(value) > len(LETTERS):
            raise ValueError(f"expected at most {len(LETTERS)} options, got {len(value)}")
        for letter, choice in zip(LETTERS, value, strict=False):
            before, after = self.option.replace("{letter}", letter).split("{text}")
            inner: list[str | Shown] = [choice] if isinstance(choice, str | Shown) else list(choice)
            written += [*(["\n"] if written else []), before, *inner, after]
        return written


def _joined(pieces: Sequence[str | Shown], media: Mapping[str, MediaFile]) -> list[Part]:
    parts: list[Part] = []
    text = ""
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        if text.strip():
            parts.append(Part("text", text=text.strip()))
        text = ""
        parts.append(Part(media[piece.media].type, media=piece.media))
    if text.strip():
        parts.append(Part("text", text=text.strip()))
    return parts
