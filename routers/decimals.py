"""Boxes written as decimals in ordinary text tokens: ``x1,y1,x2,y2``, each ``0.ddd`` or ``1.000``."""

from __future__ import annotations

import re
from collections import OrderedDict

from transformers import PreTrainedTokenizerBase

from layers.geometry import Box

_NUMBER = re.compile(r"0\.[0-9]{3}|1\.000")
_CHARACTERS = "0123456789.,"
_MEMORY = 4096
EXAMPLE = "0.123,0.456,0.789,1.000"


class DecimalBoxes:
    """Which tokens may continue a box, and when it is complete; corners are ordered, ``x1 <= x2`` and ``y1 <= y2``.

    Args:
        tokenizer: Must be able to write every box.

    Raises:
        ValueError: If it cannot.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        special = set(tokenizer.added_tokens_decoder)
        self._pieces: dict[int, str] = {}
        self._openings: dict[int, str] = {}
        for token, index in tokenizer.get_vocab().items():
            if index in special:
                continue
            if token and not token.strip(_CHARACTERS):
                self._pieces[index] = token
            elif token[:1] == "▁" and not token[1:].strip(_CHARACTERS):
                self._openings[index] = token[1:]  # a word-initial piece: the mark stands for no character here
        self._memory: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        missing = sorted(set(_CHARACTERS) - set(self._pieces.values()))
        written = tokenizer(EXAMPLE, add_special_tokens=False)["input_ids"]
        text: str | None = ""
        for index in written:
            text = self.append(text, index) if text is not None else None
        if missing or text != EXAMPLE:
            raise ValueError(
                f"coordinates 'decimals': expected a tokenizer that writes {EXAMPLE!r} in pieces of digits, point and "
                f"comma, got {tokenizer.convert_ids_to_tokens(written)} (single characters missing: {missing}); "
                "use coordinates 'bins'"
            )

    def append(self, text: str, token_id: int) -> str | None:
        """The box so far after one more token, or None if no box begins like that."""
        piece = self._pieces.get(token_id)
        if piece is None and not text:
            piece = self._openings.get(token_id)
        if piece is None or not _viable(text + piece):
            return None
        return text + piece

    @staticmethod
    def complete(text: str) -> bool:
        """Whether ``text`` spells a whole box."""
        return parse_decimal_box(text) is not None

    def continuations(self, text: str) -> tuple[int, ...]:
        """Ids of the tokens that may follow ``text``; only a complete box has none."""
        known = self._memory.get(text)
        if known is None:
            known = tuple(index for index, piece in self._pieces.items() if _viable(text + piece))
            if not text:
                known += tuple(index for index, piece in self._openings.items() if _viable(piece))
            self._memory[text] = known
            if len(self._memory) > _MEMORY:
                self._memory.popitem(last=False)
        return known


def parse_decimal_box(text: str) -> Box | None:
    """The normalised box that a text spells, or None unless it is complete and its corners are ordered."""
    fields = text.split(",")
    if len(fields) != 4 or not all(_NUMBER.fullmatch(field) for field in fields):
        return None
    x1, y1, x2, y2 = (float(field) for field in fields)
    return (x1, y1, x2, y2) if x1 <= x2 and y1 <= y2 else None


def format_decimal_box(box: Box) -> str:
    """A normalised box as text, clipped to 0 and 1 and rounded to three decimals."""
    return ",".join(f"{abs(min(max(value, 0.0), 1.0)):.3f}" for value in box)


def _viable(text: str) -> bool:
    """Whether some box begins with ``text``; numbers have a fixed width, so strings compare like their values."""
    fields = text.split(",")
    if len(fields) > 4 or not all(_NUMBER.fullmatch(field) for field in fields[:-1]):
        return False
    highest = [*fields[:-1], _highest(fields[-1])]
    return all(highest) and all(highest[i - 2] <= highest[i] for i in range(2, len(fields)))


def _highest(begun: str) -> str:
    """The largest number that begins with ``begun``, or an empty string if there is none."""
    number = "1.000" if not begun or begun[0] == "1" else begun + "0.999"[len(begun) :]
    return number if number.startswith(begun) and _NUMBER.fullmatch(number) else ""
