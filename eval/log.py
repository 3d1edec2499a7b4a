"""The prediction log: append-only JSON lines, a header that says what was run, and one row per sample.

A run that is killed leaves at most one torn last line; opening the log again drops that line and keeps all others.
Resuming is a set difference over (benchmark, key).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from eval.prediction import Prediction

FORMAT = 1
_START = b'{"type":"header"'


class LogError(ValueError):
    """A prediction log that cannot be read or continued; the message names the file and says why."""


@dataclass(frozen=True)
class Header:
    """The first line of a log.

    Args:
        identity: Whatever changes predictions or their meaning: ``checkpoint_sha256``, ``data_sha256`` and
            ``n_expected`` per benchmark, ``split``, ``control``, ``session`` options, ``versions``. A log is continued
            only by a run of equal identity.
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
class LogContents:
    """What a log holds.

    Args:
        path: The file.
        header: Its first line.
        predictions: Its rows, in order.
        torn: Bytes of an unfinished last line; 0 if it ends properly.
    """

    path: Path
    header: Header
    predictions: list[Prediction]
    torn: int = 0


def read_log(path: str | Path) -> LogContents:
    """Read a log; an unfinished last line is counted and left out.

    Raises:
        LogError: If the file is no prediction log, a line before the last is damaged, or a sample is there twice.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LogError(f"{path}: cannot be read: {error}") from None
    whole = data.rfind(b"\n") + 1
    torn = len(data) - whole
    rows = [_parse(path, number, line) for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1)]
    if not rows or rows[0].get("type") != "header":
        raise LogError(f"{path}: expected a prediction log whose first line is a header, got none")
    if rows[0].get("format") != FORMAT:
        raise LogError(f"{path}: expected format {FORMAT}, got {rows[0].get('format')!r}")
    predictions, seen = [], set()
    for number, row in enumerate(rows[1:], 2):
        if row.get("type") != "prediction":
            raise LogError(f"{path} line {number}: expected a prediction, got {row.get('type')!r}")
        try:
            prediction = Prediction.from_json(row)
        except TypeError as error:
            raise LogError(f"{path} line {number}: {error}") from None
        identifier = (prediction.benchmark, prediction.key)
        if identifier in seen:
            raise LogError(f"{path} line {number}: expected every sample once, got {identifier} again")
        seen.add(identifier)
        predictions.append(prediction)
    return LogContents(path, Header(rows[0]["identity"], rows[0].get("info", {})), predictions, torn)


class PredictionLog:
    """Appends predictions; to be used in a ``with`` statement.

    Args:
        path: Created, with its folder, if missing; continued if it is there.
        header: Of this run.

    Attributes:
        done: (benchmark, key) of what the log holds already.
        dropped: Bytes of an unfinished last line that were cut off.

    Raises:
        LogError: If the file is there and was written by another run, naming what differs.
    """

    def __init__(self, path: str | Path, header: Header) -> None:
        self.path = Path(path)
        self.done: set[tuple[str, str]] = set()
        self.dropped = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not _is_torn_header(self.path.read_bytes()):
            contents = read_log(self.path)
            _check_same(self.path, contents.header.identity, header.identity)
            self.done = {(row.benchmark, row.key) for row in contents.predictions}
            self.dropped = contents.torn
            if self.dropped:
                os.truncate(self.path, self.path.stat().st_size - self.dropped)
            self._stream = self.path.open("ab")
        else:
            self._stream = self.path.open("wb")
            self._write([header.to_json()])

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Write rows; they are on disk when this returns."""
        rows = list(predictions)
        self._write([row.to_json() for row in rows])
        self.done.update((row.benchmark, row.key) for row in rows)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def __enter__(self) -> PredictionLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, rows: list[dict[str, Any]]) -> None:
        lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows]
        self._stream.write("".join(lines).encode())
        self._stream.flush()
        os.fsync(self._stream.fileno())


def _is_torn_header(data: bytes) -> bool:
    """Whether a run was killed while it wrote the header: nothing is lost by writing it again."""
    return b"\n" not in data and (data.startswith(_START) or _START.startswith(data))


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise LogError(f"{path} line {number}: damaged: {error}") from None
    if not isinstance(row, dict):
        raise LogError(f"{path} line {number}: expected a JSON object, got {type(row).__name__}")
    return row


def _check_same(path: Path, given: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    names = sorted(set(given) | set(expected))
    different = [name for name in names if given.get(name) != expected.get(name)]
    if different:
        details = "; ".join(
            f"{name}: log has {given.get(name)!r}, this run {expected.get(name)!r}" for name in different
        )
        raise LogError(f"{path}: was written by another run and is not continued ({details}); choose another file")
