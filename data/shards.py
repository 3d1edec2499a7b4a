"""Shards: tar files of records with their media beside them, written deterministically and read with a clear error.

A sample is ``KEY.json`` and its members ``KEY.NAME.EXT``, side by side.  Nothing in a shard is decoded here.
"""

from __future__ import annotations

import glob
import io
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import IO

import fsspec
from braceexpand import braceexpand
from webdataset.writer import TarWriter

from data.records import FILE_PATTERN, KEY_PATTERN, Record, RecordError

BLOCK = 512
_MAX_NAME = 100  # of a ustar header
_GLOB = re.compile(r"[*?\[]")
_END = bytes(2 * BLOCK)


class ShardError(ValueError):
    """A shard that cannot be read or written; the message names the file, what was expected and what was given."""


@dataclass(frozen=True)
class Sample:
    """A record with the bytes of its members, by member name (``NAME.EXT``)."""

    key: str
    record: Record
    members: dict[str, bytes]


class ShardWriter:
    """Writes samples to ``DIRECTORY/PREFIX-000000.tar``, ``-000001.tar``, ...

    The same samples give the same bytes: time stamps, owners and modes are fixed. A shard gets its name only when
    it is complete, so an interrupted run leaves no half shard behind.

    Args:
        directory: Created if missing.
        prefix: First part of the file names, ``[a-z0-9_-]+``.
        max_samples: Samples per shard.

    Attributes:
        paths: The complete shards.
        count: Samples written.
    """

    def __init__(self, directory: str | Path, prefix: str, max_samples: int = 1000) -> None:
        if not KEY_PATTERN.match(prefix):
            raise ShardError(f"shard prefix: expected [a-z0-9_-]+, got {prefix!r}")
        if max_samples < 1:
            raise ShardError(f"max_samples: expected at least 1, got {max_samples}")
        self.directory, self.prefix, self.max_samples = Path(directory), prefix, max_samples
        self.directory.mkdir(parents=True, exist_ok=True)
        self.paths: list[Path] = []
        self.count = 0
        self._keys: set[str] = set()
        self._stream: IO[bytes] | None = None
        self._tar: TarWriter | None = None

    def write(self, record: Record, members: Mapping[str, bytes]) -> None:
        """Append a sample.

        Args:
            record: The record.
            members: The bytes of every member that it names, and of no other.

        Raises:
            ShardError: If the members are not those that the record names, a name does not fit into a tar header,
                or the key was written before.
        """
        key = record.key
        if set(members) != set(record.files):
            raise ShardError(f"record '{key}': expected the members {sorted(record.files)}, got {sorted(members)}")
        if key in self._keys:
            raise ShardError(f"record '{key}': expected a new key, got one that was written before")
        Record.from_json(key, record.to_json())
        longest = max((f"{key}.{name}" for name in (*members, "json")), key=len)
        if len(longest) > _MAX_NAME:
            raise ShardError(f"member '{longest}': expected at most {_MAX_NAME} characters, got {len(longest)}")
        if self._tar is None:
            self._stream = self._partial.open("wb")
            self._tar = TarWriter(self._stream, user="", group="", mode=0o444, encoder=False, mtime=0)
        self._tar.write({"__key__": key, "json": record.to_json(), **members})
        self._keys.add(key)
        self.count += 1
        if self.count % self.max_samples == 0:
            self._finish()

    def close(self) -> None:
        """Complete the last shard."""
        self._finish()

    def discard(self) -> None:
        """Drop the shard that is being written; complete ones stay."""
        if self._tar is not None and self._stream is not None:
            self._tar.close()
            self._stream.close()
            self._partial.unlink()
            self._tar = self._stream = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        else:
            self.discard()

    @property
    def _partial(self) -> Path:
        return self.directory / f"{self.prefix}-{len(self.paths):06d}.tar.part"

    def _finish(self) -> None:
        if self._tar is None or self._stream is None:
            return
        self._tar.close()
        self._stream.close()
        path = self._partial.with_suffix("")
        self._partial.replace(path)
        self.paths.append(path)
        self._tar = self._stream = None


def expand(spec: str | Path | Sequence[str | Path]) -> list[str]:
    """The shards that a directory, a glob, a brace pattern or a list of these names, sorted and without repetition.

    Args:
        spec: ``DIR`` (every ``*.tar`` in it), ``DIR/scenes-*.tar``, ``DIR/scenes-{000000..000003}.tar``, an fsspec
            address, or several.

    Raises:
        ShardError: If it names no shard, or a command (``pipe:``).
    """
    specs = [spec] if isinstance(spec, str | Path) else list(spec)
    found: set[str] = set()
    for item in specs:
        text = str(item)
        _refuse_commands(text)
        for path in braceexpand(text):
            matches = _matches(path)
            if not matches:
                raise ShardError(f"shards '{text}': expected a directory, a glob or a file with shards, found none")
            found.update(matches)
    return sorted(found)


def read_samples(
    paths: str | Path | Sequence[str | Path], on_error: Callable[[str, RecordError], None] | None = None
) -> Iterator[Sample]:
    """Read samples in the order of the shards, undecoded.

    Args:
        paths: Anything that :func:`expand` takes.
        on_error: Called with the shard and the error of a bad record, which is then left out; without it the error
            is raised.

    Yields:
        The samples.

    Raises:
        ShardError: For a shard that is cut short, is no tar file, or holds a member that belongs to no record.
        RecordError: For a bad record, naming shard, key and field.
    """
    for path in expand(paths):
        for key, files in _groups(path):
            try:
                sample = assemble(path, key, files)
            except RecordError as error:
                if on_error is None:
                    raise
                on_error(path, error)
                continue
            yield sample


def assemble(path: str, key: str, files: Mapping[str, bytes]) -> Sample:
    """A sample from the members of one key (``json`` and the media).

    Raises:
        RecordError: If the record is missing, malformed, or names a member that is not there.
    """
    if "json" not in files:
        raise RecordError(f"{path}: record '{key}': expected the member '{key}.json', got {sorted(files)}")
    try:
        record = Record.from_json(key, files["json"])
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None
    missing = sorted(set(record.files) - set(files))
    if missing:
        given = sorted(set(files) - {"json"})
        raise RecordError(f"{path}: record '{key}': expected the members {missing} beside it, got {given}")
    return Sample(key, record, {name: files[name] for name in record.files})


def split_member_name(path: str, name: str) -> tuple[str, str]:
    """(key, member name) of a tar entry: ``KEY.json`` or ``KEY.NAME.EXT``.

    Raises:
        ShardError: For any other name, such as one with a directory.
    """
    key, _, rest = name.partition(".")
    if not KEY_PATTERN.match(key) or not (rest == "json" or FILE_PATTERN.match(rest)):
        raise ShardError(f"{path}: member name: expected KEY.json or KEY.NAME.EXT of [a-z0-9_-], got {name!r}")
    return key, rest


def open_shard(path: str) -> IO[bytes]:
    """Open a shard for reading and check that its end is there.

    Raises:
        ShardError: If it does not exist, is a command, or is cut short.
    """
    _refuse_commands(path)
    try:
        stream: IO[bytes] = fsspec.open(path, "rb").open() if "://" in path else open(path, "rb")
    except OSError as error:
        raise ShardError(f"{path}: cannot be opened: {error}") from None
    size = stream.seek(0, io.SEEK_END)
    tail = b""
    if size >= len(_END) and size % BLOCK == 0:
        stream.seek(-len(_END), io.SEEK_END)
        tail = stream.read()
    if tail != _END:
        stream.close()
        raise ShardError(
            f"{path}: expected a complete tar file (whole {BLOCK}-byte blocks, ending in {len(_END)} zero bytes), "
            f"got {size} bytes without that end: it is cut short or no tar file"
        )
    stream.seek(0)
    return stream


def read_members(path: str) -> Iterator[tuple[str, str, tarfile.TarInfo, bytes]]:
    """Every member of a shard: key, member name, header and bytes.

    Raises:
        ShardError: If the shard is cut short or damaged, a member belongs to no record, is there twice, or lies
            apart from its key's others.
    """
    seen: set[str] = set()
    key, names = "", set[str]()
    with open_shard(path) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                while (info := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would remember every header
                    if info.isdir():
                        continue
                    file = tar.extractfile(info) if info.isreg() else None
                    if file is None:
                        raise ShardError(f"{path}: expected regular files, got '{info.name}', which is none")
                    member_key, name = split_member_name(path, info.name)
                    if member_key != key:
                        if member_key in seen:
                            raise ShardError(f"{path}: expected the members of '{member_key}' together, got two places")
                        seen.add(member_key)
                        key, names = member_key, set()
                    if name in names:
                        raise ShardError(f"{path}: expected one member '{info.name}', got two")
                    names.add(name)
                    yield key, name, info, file.read()
                end = tar.offset
        except (tarfile.TarError, EOFError) as error:
            raise ShardError(f"{path}: expected a complete tar file, got one that breaks off: {error}") from None
        stream.seek(end)  # tarfile takes a damaged header for the end
        if stream.read(len(_END)) != _END:
            raise ShardError(f"{path}: expected a member or the end at byte {end}, got a damaged header")


def _groups(path: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    for key, members in groupby(read_members(path), key=lambda member: member[0]):
        yield key, {name: data for _, name, _, data in members}


def _matches(path: str) -> list[str]:
    if "://" in path:
        filesystem, inner = fsspec.url_to_fs(path)
        found = filesystem.glob(f"{inner.rstrip('/')}/*.tar") if filesystem.isdir(inner) else filesystem.glob(inner)
        return [filesystem.unstrip_protocol(item) for item in found]
    if Path(path).is_dir():
        return [str(item) for item in Path(path).glob("*.tar")]
    if Path(path).is_file():
        return [path]
    return glob.glob(path) if _GLOB.search(path) else []


def _refuse_commands(path: str) -> None:
    if path.lstrip().lower().startswith("pipe:"):
        raise ShardError(f"shards: expected a file or an fsspec address, got the command {path!r}; commands never run")
