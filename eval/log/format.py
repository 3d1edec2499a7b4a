"""What stands in a log's lines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1
HEADER_START = b'{"type":"header"'
ROW_START = re.compile(
    rb'\{"type":"(prediction|skipped)","benchmark":("(?:[^"\\]|\\.)*"),"key":("(?:[^"\\]|\\.)*")(?:,"index":(-?\d+))?'
)
"""How our own rows begin: enough to tell what a row is without parsing all of it."""
RUN = "run.json"
CLAIMS = "claims"


class LogError(ValueError):
    """A prediction log that cannot be read or continued; the message names the file and says why."""


@dataclass(frozen=True)
class Header:
    """The first line of a log's file.

    Args:
        identity: Whatever changes predictions or their meaning: ``checkpoint_sha256``, ``data_sha256``, ``n_expected``,
            ``protocols`` and ``generation`` per benchmark, ``split``, ``control``, ``session`` options, ``versions``. A
            log is continued only by a run of equal identity.
        info: What does not: paths, device, parameter counts, the time of the start.
    """

    identity: Mapping[str, Any]
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def control(self) -> str | None:
        """Name of the control, or None for the model itself."""
        control: str | None = self.identity["control"]
        return control

    @property
    def constrained(self) -> bool:
        """Whether decoding was constrained by the grammar."""
        return bool(self.identity["session"]["constrained"])

    def to_json(self) -> dict[str, Any]:
        """The header line."""
        return {"type": "header", "format": FORMAT, "identity": dict(self.identity), "info": dict(self.info)}


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be asked; asked again when the log is continued.

    Args:
        benchmark: Its benchmark.
        key: Its key.
        reason: What was expected and what was given.
    """

    benchmark: str
    key: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """A log row."""
        return {"type": "skipped", **vars(self)}


def parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """A line of a log.

    Raises:
        LogError: If it is no JSON object, naming file and line.
    """
    try:
        row = json.loads(line)
    except ValueError as error:
        raise LogError(f"{path} line {number}: damaged: {error}") from None
    if not isinstance(row, dict):
        raise LogError(f"{path} line {number}: expected a JSON object, got {type(row).__name__}")
    return row


def parse_header(path: Path, line: bytes) -> Header:
    """The first line of a file.

    Raises:
        LogError: If it is no header of this format.
    """
    row = parse_line(path, 1, line) if line.startswith(b"{") else {}
    if row.get("type") != "header":
        raise LogError(f"{path}: expected a prediction log whose first line is a header, got none")
    if row.get("format") != FORMAT:
        raise LogError(f"{path}: expected format {FORMAT}, got {row.get('format')!r}")
    return Header(row["identity"], row.get("info", {}))


def check_same(path: Path, given: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse to mix runs.

    Args:
        path: Of the log.
        given: The identity that it holds.
        expected: That of this run.

    Raises:
        LogError: Naming every entry that differs.
    """
    names = sorted(set(given) | set(expected))
    different = [name for name in names if given.get(name) != expected.get(name)]
    if different:
        details = "; ".join(
            f"{name}: log has {given.get(name)!r}, this run {expected.get(name)!r}" for name in different
        )
        raise LogError(f"{path}: was written by another run and is not continued ({details}); choose another file")
