"""Reading logs without holding them: an index of where each row lies, rows parsed as they are asked for."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.log.format import ROW_START, RUN, Header, LogError, Skipped, check_same, parse_header, parse_line
from eval.prediction import Prediction

Key = tuple[str, str]


@dataclass
class _Places:
    """Where a benchmark's rows lie: number of the file, offset, line, and the sample's place in the benchmark."""

    files: array[int] = field(default_factory=lambda: array("l"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    lines: array[int] = field(default_factory=lambda: array("q"))
    indices: array[int] = field(default_factory=lambda: array("q"))

    def order(self) -> NDArray[np.int64]:
        """In the benchmark's order, whoever wrote what when; rows without a place stay as they lie."""
        return np.argsort(np.asarray(self.indices, dtype=np.int64), kind="stable")


class Rows:
    """The predictions of one benchmark; parsed anew in every iteration, none of them held.

    Args:
        paths: The log's files.
        places: Where the rows lie.
    """

    def __init__(self, paths: list[Path], places: _Places) -> None:
        self._paths, self._places = paths, places
        self._order = places.order()

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Prediction]:
        places = self._places
        streams = {number: self._paths[number].open("rb") for number in set(places.files)}
        try:
            for place in self._order.tolist():
                number = places.files[place]
                stream = streams[number]
                stream.seek(places.offsets[place])
                yield _prediction(self._paths[number], places.lines[place], stream.readline())
        finally:
            for stream in streams.values():
                stream.close()

    def __getitem__(self, place: int) -> Prediction:
        number = self._places.files[int(self._order[place])]
        with self._paths[number].open("rb") as stream:
            stream.seek(self._places.offsets[int(self._order[place])])
            return _prediction(self._paths[number], self._places.lines[int(self._order[place])], stream.readline())


class Log:
    """What a log holds.

    Args:
        path: The file, or the folder.
        header: Of its first file.

    Attributes:
        torn: Bytes of unfinished last lines; 0 if all files end properly.
        duplicates: Rows of samples that another process's file holds already; they are not counted.
        skipped: Samples that could not be asked, as far as no later row answers them.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.header = header
        self.torn = 0
        self.duplicates = 0
        self.skipped: list[Skipped] = []
        self.keys: set[Key] = set()
        self._paths: list[Path] = []
        self._places: dict[str, _Places] = {}

    @property
    def benchmarks(self) -> list[str]:
        """Names of the benchmarks that have rows."""
        return list(self._places)

    def rows(self, benchmark: str) -> Rows:
        """The predictions of a benchmark, in its order."""
        return Rows(self._paths, self._places.get(benchmark, _Places()))

    @property
    def predictions(self) -> list[Prediction]:
        """All rows at once, for logs that are small."""
        return [row for name in self.benchmarks for row in self.rows(name)]

    def _read(self, path: Path) -> None:
        number = len(self._paths)
        self._paths.append(path)
        own: set[Key] = set()
        offset = 0
        with path.open("rb") as stream:
            for count, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    self.torn += len(line)
                    break
                if count > 1:
                    self._take(path, number, count, offset, line, own)
                offset += len(line)
        self.keys |= own

    def _take(self, path: Path, number: int, count: int, offset: int, line: bytes, own: set[Key]) -> None:
        kind, key, index = _start_of(path, count, line)
        if kind == "skipped":
            self.skipped.append(Skipped(*key, str(parse_line(path, count, line).get("reason", ""))))
            return
        if key in own:
            raise LogError(f"{path} line {count}: expected every sample once, got {key} again")
        own.add(key)
        if key in self.keys:
            self.duplicates += 1
            return
        places = self._places.setdefault(key[0], _Places())
        places.files.append(number)
        places.offsets.append(offset)
        places.lines.append(count)
        places.indices.append(index)


def read_log(path: str | Path) -> Log:
    """Read a log, a file or a folder of files; unfinished last lines are counted and left out.

    Raises:
        LogError: If it is no prediction log, its files belong to different runs, a line before the last is damaged, or
            a sample is in one file twice.
    """
    path = Path(path)
    files = log_files(path)
    headers = [(file, header) for file in files if (header := read_header(file)) is not None]
    if not headers:
        raise LogError(f"{path}: expected a prediction log whose first line is a header, got none")
    for file, header in headers[1:]:
        check_same(file, header.identity, headers[0][1].identity)
    log = Log(path, headers[0][1])
    for file, _ in headers:
        log._read(file)
    answered = {(item.benchmark, item.key): item for item in log.skipped if (item.benchmark, item.key) not in log.keys}
    log.skipped = list(answered.values())
    return log


def find_logs(path: str | Path) -> list[Path]:
    """The logs that a path stands for: itself, or those that lie in a folder of logs.

    Raises:
        LogError: If a folder holds none.
    """
    path = Path(path)
    if not path.is_dir() or (path / RUN).is_file():
        return [path]
    found = sorted(item for item in path.iterdir() if item.suffix == ".jsonl" or (item / RUN).is_file())
    if not found:
        raise LogError(f"{path}: expected a prediction log, or a folder of them, got none")
    return found


def log_files(path: Path) -> list[Path]:
    """The files of a log.

    Raises:
        LogError: If there are none.
    """
    if not path.is_dir():
        if not path.is_file():
            raise LogError(f"{path}: expected a prediction log, got no such file or folder")
        return [path]
    files = sorted(path.glob("*.jsonl"))
    if not files or not (path / RUN).is_file():
        raise LogError(f"{path}: expected a folder of a prediction log, with {RUN} and files *.jsonl")
    return files


def read_header(path: Path) -> Header | None:
    """The header of a file; None where a run was killed while it wrote it, so that there is nothing else.

    Raises:
        LogError: If the first line is another thing.
    """
    try:
        with path.open("rb") as stream:
            line = stream.readline()
    except OSError as error:
        raise LogError(f"{path}: cannot be read: {error}") from None
    return None if is_torn_header(line) else parse_header(path, line)


def is_torn_header(line: bytes) -> bool:
    """Whether a run was killed while it wrote the header: nothing is lost by writing it again."""
    start = b'{"type":"header"'
    return not line.endswith(b"\n") and (line.startswith(start) or start.startswith(line))


def _start_of(path: Path, number: int, line: bytes) -> tuple[str, Key, int]:
    """(kind, key, index) of a row."""
    match = ROW_START.match(line)
    if match is not None and line.endswith(b"}\n"):
        return match[1].decode(), (json.loads(match[2]), json.loads(match[3])), int(match[4] or -1)
    row = parse_line(path, number, line)
    kind = row.get("type")
    if kind not in ("prediction", "skipped") or not isinstance(row.get("key"), str):
        raise LogError(f"{path} line {number}: expected a prediction, got {kind!r}")
    return str(kind), (str(row.get("benchmark")), row["key"]), int(row.get("index", -1))


def _prediction(path: Path, number: int, line: bytes) -> Prediction:
    try:
        return Prediction.from_json(parse_line(path, number, line))
    except TypeError as error:
        raise LogError(f"{path} line {number}: {error}") from None
