"""Shards: tar files of records with their media beside them, written deterministically and read with a clear error.

A sample is ``KEY.json`` and its members ``KEY.NAME.EXT``, side by side.  Nothing in a shard is decoded here.
"""

from __future__ import annotations

import glob
import io
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, cast

import fsspec
from braceexpand import braceexpand
from webdataset.writer import TarWriter

from data.records import FILE_PATTERN, KEY_PATTERN, Record, RecordError
from data.remote import is_remote, open_remote

BLOCK = 512
_MAX_NAME = 100  # of a ustar header
_GLOB = re.compile(r"[*?\[]")
_END = bytes(2 * BLOCK)
_BUFFER = 2**20


class ShardError(ValueError):
    """A shard that cannot be read or written; the message names the file, what was expected and what was given."""


@dataclass(frozen=True)
class Sample:
    """A record with the bytes of its members, by member name (``NAME.EXT``), perhaps read only when asked for."""

    key: str
    record: Record
    members: Mapping[str, bytes]


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
    paths: str | Path | Sequence[str | Path], on_error: Callable[[str, str, ValueError], None] | None = None
) -> Iterator[Sample]:
    """Read samples in the order of the shards, front to back, undecoded.

    Args:
        paths: Anything that :func:`expand` takes.
        on_error: Called with the shard, the key and the error of a bad sample, which is then left out, and with an
            empty key where the rest of a shard cannot be read; without it the error is raised.

    Yields:
        The samples.

    Raises:
        ShardError: For a shard that is cut short, is no tar file, or holds members that belong to no record.
        RecordError: For a bad record, naming shard, key and field.
    """
    for path in expand(paths):
        groups = read_groups(path)
        while True:
            key, group = "", None
            try:
                group = next(groups, None)
                if group is None:
                    break
                key = group.key
                if group.problem is not None:
                    raise ShardError(f"{path}: {group.problem}")
                sample = assemble(path, key, group.members)
            except (ShardError, RecordError) as error:
                if on_error is not None:
                    on_error(path, key, error)
                elif group is None or group.whole:  # of a cut, the error that follows tells more
                    raise
            else:
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


def split_member_name(name: str) -> tuple[str, str]:
    """(key, member name) of a tar entry: ``KEY.json`` or ``KEY.NAME.EXT``.

    Raises:
        ShardError: For any other name, such as one with a directory.
    """
    key, _, rest = name.partition(".")
    if not KEY_PATTERN.match(key) or not (rest == "json" or FILE_PATTERN.match(rest)):
        raise ShardError(f"member name: expected KEY.json or KEY.NAME.EXT of [a-z0-9_-], got {name!r}")
    return key, rest


def open_shard(path: str) -> IO[bytes]:
    """Open a shard for reading.

    Raises:
        ShardError: If it does not exist, or is a command.
    """
    _refuse_commands(path)
    try:
        stream = cast(IO[bytes], io.BufferedReader(open_remote(path), _BUFFER) if is_remote(path) else open(path, "rb"))
    except OSError as error:
        raise ShardError(f"{path}: cannot be opened: {error}") from None
    return stream


class Digest(Protocol):
    """What :mod:`hashlib` makes."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes."""


@dataclass
class Group:
    """What lies side by side under one key.

    Args:
        key: The key; the member's whole name where it is no name of ours.
        members: Member name -> bytes.
        places: Member name -> (offset of the data, size), in bytes.
        problem: Why it is no sample, where that can be told already.
        whole: Whether all of it was read; False for the last one before a cut, which may lack members.
    """

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    problem: str | None = None
    whole: bool = True


def read_groups(path: str, digest: Digest | None = None) -> Iterator[Group]:
    """Everything in a shard by key, read front to back, so that nothing but reading is asked of the stream.

    Args:
        path: The shard.
        digest: A hash that is given all bytes on their way; of a damaged shard, those up to where reading ends.

    Raises:
        ShardError: After the last key before it, if the shard is cut short or damaged from there on.
    """
    seen: set[str] = set()
    group: Group | None = None
    with open_shard(path) as stream:
        watched = _Watched(path, stream, digest)
        try:
            with tarfile.open(fileobj=cast(IO[bytes], watched), mode="r|", bufsize=_BUFFER) as tar:
                while (info := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would remember every header
                    if info.isdir():
                        continue
                    key, name, problem = _place_of(info)
                    if group is None or key != group.key or not name:
                        if group is not None:
                            yield group
                        again = key in seen
                        seen.add(key)
                        group = Group(key)
                        group.problem = f"expected the members of '{key}' together, got two places" if again else None
                    if name in group.members:
                        problem = f"expected one member '{info.name}', got two"
                    group.problem = group.problem or problem
                    if problem is None:
                        group.members[name] = _content(tar, info)
                        group.places[name] = (info.offset_data, info.size)
            end = tar.offset
            _check_end(path, watched, end)
        except (tarfile.TarError, EOFError) as error:
            if group is not None:
                yield replace(group, whole=False)
            raise ShardError(f"{path}: cut short or no tar file: {error}, after {watched.size} bytes") from None
        except ShardError:
            if group is not None:
                yield replace(group, whole=False)
            raise
        if group is not None:
            yield group


class _Watched:
    """A stream read front to back that knows how long it is, and where its last byte lies that is not zero."""

    def __init__(self, path: str, stream: IO[bytes], digest: Digest | None = None) -> None:
        self.path, self.stream, self.digest = path, stream, digest
        self.size = self.content = 0

    def read(self, count: int) -> bytes:
        try:
            data = self.stream.read(count)
        except OSError as error:
            raise ShardError(f"{self.path}: cannot be read on after {self.size} bytes: {error}") from None
        written = len(data.rstrip(b"\0"))
        if written:
            self.content = self.size + written
        self.size += len(data)
        if self.digest is not None:
            self.digest.update(data)
        return data


def _check_end(path: str, watched: _Watched, end: int) -> None:
    """What follows the last member must be zeros, two blocks of them at least: tarfile takes less for an end, too."""
    while watched.read(_BUFFER):
        pass
    if watched.content > end and watched.size % BLOCK == 0:
        raise ShardError(f"{path}: expected a member or the end at byte {end}, got a damaged header")
    if watched.size % BLOCK or watched.size - end < len(_END):
        raise ShardError(
            f"{path}: cut short: expected whole {BLOCK}-byte blocks, ending in {len(_END)} zero bytes, got "
            f"{watched.size} bytes without that end"
        )


def _place_of(info: tarfile.TarInfo) -> tuple[str, str, str | None]:
    """(key, member name, problem) of a tar entry; with a foreign name, it stands for itself."""
    try:
        key, name = split_member_name(info.name)
    except ShardError as error:
        return info.name, "", str(error)
    # A sparse file's holes would be filled up to any size that its header claims.
    good = info.isreg() and not info.issparse()
    return key, name, None if good else f"expected regular files, got '{info.name}', which is none"


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    assert file is not None
    return file.read()


def _matches(path: str) -> list[str]:
    if is_remote(path):
        if path.endswith(".tar") and not _GLOB.search(path):  # to ask a web server whether it is a folder reads it all
            return [path]
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
