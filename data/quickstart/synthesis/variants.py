"""Speakers of our own for espeak-ng: its voice variants are text files, and another file is another speaker."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

VARIANTS = Path("voices", "!v")
_PITCH = (82, 118)
_FORMANT = (100, 100, 100)  # frequency, strength and width, in percent of the language's own
_NARROWEST, _WIDEST = np.array([0.87, 0.8, 0.88]), np.array([1.12, 1.15, 1.12])  # of formants 1 to 3, in frequency


def linked_data(data: Path) -> Path:
    """A temporary copy of espeak-ng's data, of links, in which variants can be added.

    Its path is short too: espeak-ng keeps it in a buffer of 160 bytes.
    """
    root = Path(tempfile.mkdtemp(prefix="espeak-"), "espeak-ng-data")
    (root / VARIANTS).mkdir(parents=True)
    for folder, left_out in ((Path(), "voices"), (Path("voices"), "!v"), (VARIANTS, None)):
        for path in (data / folder).iterdir():
            if path.name != left_out:
                os.symlink(path, root / folder / path.name)
    return root


def another_speaker(variant: str, speaker: int) -> str:
    """A variant's text with another pitch and other formants, so that it is the voice of somebody else.

    The pitch moves by up to a tenth and its range by up to two fifths; the formants move together by up to 6 % and
    each by up to 20 %, and their strengths and widths with them. Low voices stay low, and high ones high.

    Args:
        variant: The text of the variant's file.
        speaker: Who; the seed of what is drawn.
    """
    rng = np.random.default_rng([speaker, 6])
    lines = [line.split() for line in variant.splitlines()]
    low, high = _numbers(lines, ["pitch"], _PITCH)[:2]
    base = low * rng.uniform(0.9, 1.1)
    drawn = {"pitch": [base, base + (high - low) * rng.uniform(0.7, 1.4)]}
    together = rng.uniform(0.94, 1.06)
    frequencies = together * rng.uniform(_NARROWEST, _WIDEST)
    strengths, widths = np.exp(rng.normal(0, 0.25, 3)), np.exp(rng.normal(0, 0.2, 3))
    for number in (1, 2, 3):
        values = _numbers(lines, ["formant", str(number)], _FORMANT)
        factors = [frequencies[number - 1], strengths[number - 1], widths[number - 1]]
        drawn[f"formant {number}"] = [a * b for a, b in zip(values, factors, strict=False)] + list(values[3:])
    kept = [line for line in lines if not {" ".join(line[:1]), " ".join(line[:2])} & set(drawn)]
    made = [[name, *(str(round(value)) for value in values)] for name, values in drawn.items()]
    return "\n".join(" ".join(line) for line in (*kept, *made)) + "\n"


def _numbers(lines: Sequence[Sequence[str]], key: Sequence[str], default: Sequence[float]) -> Sequence[float]:
    """What follows a key in the last line that begins with it; what is not given there is the default."""
    found: Sequence[float] = ()
    for line in lines:
        if list(line[: len(key)]) == list(key):
            found = [float(word) for word in line[len(key) :]]
    return [*found, *default[len(found) :]]
