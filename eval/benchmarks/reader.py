"""Readers of official benchmark files: one item per question, its media read when they are asked for."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.media import MediaError
from data.records import MediaType, Part, Target
from eval.benchmarks.benchmark import BenchmarkError

_BLOCK = 2**20


@dataclass(frozen=True)
class MediaFile:
    """A medium of an item, undecoded.

    Args:
        type: "image", "video", "audio" or "graph".
        path: Its file, read when it is needed; a missing one costs the sample that shows it and no other.
        data: Its bytes, where they stand in the benchmark's own file (base64 columns, parquet).
        missing: Why there is nothing to read, such as an empty cell; costs the sample that shows it.
    """

    type: MediaType
    path: Path | None = None
    data: bytes | None = None
    missing: str = ""

    @property
    def identity(self) -> str:
        """Equal for media of equal content: the path, or a hash of the bytes."""
        return self.missing or (str(self.path) if self.data is None else hashlib.sha256(self.data).hexdigest())

    def read(self) -> bytes:
        """The bytes.

        Raises:
            MediaError: If the file cannot be read, or there is none.
        """
        if self.missing:
            raise MediaError(self.missing)
        if self.data is not None:
            return self.data
        assert self.path is not None
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise MediaError(f"'{self.path}': cannot be read: {error.strerror}") from None


class MediaMembers(Mapping[str, bytes]):
    """Members that are read when they are asked for.

    Args:
        files: Member name -> medium.
    """

    def __init__(self, files: Mapping[str, MediaFile]) -> None:
        self._files = files

    def __getitem__(self, name: str) -> bytes:
        return self._files[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def identity(self, name: str) -> str:
        """Equal for media of equal content; reads no file."""
        return self._files[name].identity


@dataclass(frozen=True)
class Shown:
    """The place of a medium within a field, for prompts that interleave media and words.

    Args:
        media: Its name in :attr:`Item.media`.
    """

    media: str


@dataclass(frozen=True)
class Item:
    """One question.

    Args:
        key: Unique within the benchmark and the same in every reading; any text. Official ids where they are unique.
        fields: What the row's prompt may name in braces. A text, a list of texts (options, written as "A. ..." lines),
            or a list of texts and :class:`Shown` (interleaved).
        media: Name -> medium, in order. Those that no field places stand before the words.
        answer: The gold reply: what scores the maximum if a model says it.
        calls: The gold reply's calls, after its text.
        targets: Id -> target of a call.
        cluster: What the question shares with others that are not independent of it; by default its media.
        meta: What the metric needs, and what scores are broken down by; plain JSON values.
    """

    key: str
    fields: Mapping[str, str | Sequence[str | Shown]]
    media: Mapping[str, MediaFile] = field(default_factory=dict)
    answer: str = ""
    calls: tuple[Part, ...] = ()
    targets: Mapping[str, Target] = field(default_factory=dict)
    cluster: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


class Reader(ABC):
    """Reads the official local files of a benchmark; constructed from a catalogue row's ``init_args``.

    Subclasses take ``root`` first and plain values (file names below it, column names, a split) after it. Construction
    touches no file, so that a catalogue can be listed anywhere.

    Args:
        root: The benchmark's folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """Annotation files that must be there; they make the data hash. Media do not belong to them."""

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """The questions in a fixed order.

        Raises:
            BenchmarkError: If a file is missing or malformed, naming it and where in it.
        """

    @property
    def missing(self) -> tuple[Path, ...]:
        """Those of :attr:`files` that are not there."""
        return tuple(path for path in self.files if not path.is_file())

    @property
    def sha256(self) -> str:
        """Of the annotation files, in order.

        Raises:
            BenchmarkError: If one is missing.
        """
        digest = hashlib.sha256()
        for path in self.files:
            try:
                with path.open("rb") as stream:
                    while block := stream.read(_BLOCK):
                        digest.update(block)
            except OSError as error:
                raise BenchmarkError(f"'{path}': cannot be read: {error.strerror}") from None
        return digest.hexdigest()


def below(root: Path, name: str) -> Path:
    """A file below a folder, whose parts may be links.

    Raises:
        BenchmarkError: If the name leads out of it.
    """
    inner = os.path.normpath(name)
    if os.path.isabs(inner) or inner.split(os.sep)[0] == "..":
        raise BenchmarkError(f"expected a file below '{root}', got '{name}'")
    return root / inner


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        BenchmarkError: If it is missing or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise BenchmarkError(f"'{path}': cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BenchmarkError(f"'{path}': expected JSON, got {error}") from None


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not blank, streaming.

    Raises:
        BenchmarkError: If the file is missing or a line is no JSON object, naming the line.
    """
    try:
        stream = path.open(encoding="utf-8-sig")
    except OSError as error:
        raise BenchmarkError(f"'{path}': cannot be read: {error.strerror}") from None
    with stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BenchmarkError(f"'{path}' line {number}: expected JSON, got {error}") from None
            if not isinstance(row, dict):
                raise BenchmarkError(f"'{path}' line {number}: expected a JSON object, got {type(row).__name__}")
            yield number, row


def read_lines(path: Path) -> list[str]:
    """The lines of a text, which end with line feeds and nothing else.

    ``str.splitlines`` also breaks at form feeds and Unicode's line separators, which stand within lines of corpora.

    Raises:
        BenchmarkError: If it is missing or no UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"'{path}': cannot be read: {error}") from None
    return text.removesuffix("\n").split("\n") if text else []
