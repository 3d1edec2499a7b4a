"""What converters share: counting what is left out, reading files below a root, keys."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from data.drafts import Draft, Origin
from data.records import SPLITS, Record

Converted = tuple[Record, dict[str, bytes]]
_SHOWN = 3


class ConversionError(ValueError):
    """A source that is not in the format; the message says what was expected and what was given."""


class SkipItemError(ValueError):
    """An item that cannot become a record; its message is the reason under which it is counted."""


@dataclass
class Tally:
    """What a conversion did with every item.

    Args:
        converted: Items that became records.
        skipped: Reason -> items that did not.
        examples: Reason -> the first few of them.
        unknown: Field of the source that no converter reads -> how often it was there.
    """

    converted: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)

    def skip(self, item: object, reason: str) -> None:
        """Count an item that is left out."""
        self.skipped[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < _SHOWN:
            shown.append(str(item))

    def fields(self, value: Mapping[str, Any], known: Iterable[str], where: str = "") -> None:
        """Count the fields of a source's object that are not read."""
        for name in set(value) - set(known):
            self.unknown[f"{where}.{name}" if where else name] += 1

    def to_json(self) -> dict[str, Any]:
        """As it is written beside the shards."""
        return {
            "converted": self.converted,
            "skipped": {
                reason: {"items": count, "examples": self.examples[reason]} for reason, count in self.skipped.items()
            },
            "unknown_fields": dict(sorted(self.unknown.items())),
        }


class Converter(Protocol):
    """A module of ``data.converters``."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of the format."""

    def convert(self, source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
        """Yield records; what cannot become one is counted.

        Raises:
            ConversionError: If the source is not in the format.
        """


def origin(options: argparse.Namespace, split: str | None = None) -> Origin:
    """What the command line says of all records; a split that the source names counts more."""
    return Origin(options.source_name, options.license, split or options.split)


def draft(options: argparse.Namespace, number: int, task: str, split: str | None = None) -> Draft:
    """A new record, numbered within its conversion."""
    prefix = options.prefix
    return Draft(f"{prefix}-{number:08d}", task, origin(options, split))


def record_split(name: str) -> str:
    """The split that a data set's own name for one stands for.

    Raises:
        SkipItemError: For a name that means none.
    """
    known = {"train": "train", "val": "val", "dev": "val", "validation": "val", "valid": "val"}
    lowered = name.lower()
    found = known.get(lowered) or ("test" if lowered.startswith("test") else None)
    if found not in SPLITS:
        raise SkipItemError(f"split '{name}' is none of {SPLITS}")
    return str(found)


def read_json(path: Path, kind: type | tuple[type, ...], what: str) -> Any:
    """Read a JSON file, or JSON Lines for a list.

    Raises:
        ConversionError: If it is neither, or holds another type.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"{what} '{path}': cannot be read: {error}") from None
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        value = json.loads(text)
    except ValueError as error:
        raise ConversionError(f"{what} '{path}': expected JSON, got: {error}") from None
    if not isinstance(value, kind):
        wanted = " or ".join(item.__name__ for item in (kind if isinstance(kind, tuple) else (kind,)))
        raise ConversionError(f"{what} '{path}': expected a JSON {wanted}, got {type(value).__name__}")
    return value


def read_below(root: Path, name: str) -> bytes:
    """The bytes of a file that a source names, which must lie below the root.

    Raises:
        SkipItemError: If it does not, or is not there.
    """
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise SkipItemError("file outside the media folder")
    try:
        return path.read_bytes()
    except OSError as error:
        raise SkipItemError(f"file cannot be read ({error.strerror or type(error).__name__})") from None


def clipped_box(xywh: Iterable[float], size: tuple[int, int]) -> list[float]:
    """Xyxy of a box xywh, cut to its image.

    Raises:
        SkipItemError: If nothing of it lies in the image.
    """
    x, y, width, height = (float(value) for value in xywh)
    x1, y1 = max(0.0, x), max(0.0, y)
    x2, y2 = min(float(size[0]), x + width), min(float(size[1]), y + height)
    if not (x1 < x2 and y1 < y2):
        raise SkipItemError("box without area in its image")
    return [x1, y1, x2, y2]


def tidy(text: str) -> str:
    """Text without surrounding and repeated white space."""
    return re.sub(r"\s+", " ", text).strip()
