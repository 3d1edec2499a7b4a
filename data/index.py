"""Random access to shards: offsets in ``X.tar.idx``, rendered lengths in ``X.tar.PLANHASH.len``.

Both sidecars are JSON, carry the shard's fingerprint (size and sampled content, no time stamps) and are refused when
it has changed, or when the plan is another one. The first also carries a checksum of all bytes, for ``--verify``.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast, overload

import numpy as np

from data.headers import scan_headers
from data.records import RecordError, parse_json
from data.remote import is_remote, read_ranges, remote_size
from data.render import RenderedSize, RenderError, rendered_size
from data.shards import BLOCK, Group, Sample, ShardError, assemble, open_shard, read_groups
from data.sidecars import StaleIndexError, keys_in_sidecar, read_sidecar, write_sidecar
from models.plan import BatchPlan

INDEX_VERSION = 4
_PROBES = 64
_LONGEST_TAG = 64


@dataclass(frozen=True)
class Entry:
    """Where a sample lies in its shard.

    Args:
        key: The sample's key.
        task: The record's task; "" where the record does not parse.
        members: Member name (``json`` or ``NAME.EXT``) -> (offset of the data, size), in bytes.
        meta: The entries of the record's ``meta`` that are numbers, truth values or short strings, to select by.
    """

    key: str
    task: str
    members: dict[str, tuple[int, int]]
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, in order.

    Args:
        path: The shard.
        fingerprint: Identifies its content.
        entries: Its samples.
        problems: (key, reason) of what is no sample; the key is empty where the rest of the shard is unreadable.
        sha256: Of all its bytes, empty where it could not be read to its end.
    """

    path: str
    fingerprint: str
    entries: Sequence[Entry]
    problems: tuple[tuple[str, str], ...] = ()
    sha256: str = ""

    def __len__(self) -> int:
        return len(self.entries)

    def key(self, position: int) -> str:
        """The key of one sample."""
        entries = self.entries
        return entries.key(position) if isinstance(entries, CompactEntries) else entries[position].key

    def compact(self) -> ShardIndex:
        """The same for reading alone, without tasks and meta, in a tenth of the memory."""
        return replace(self, entries=CompactEntries(self.entries))


class CompactEntries(Sequence[Entry]):
    """Entries without tasks and meta, in arrays: millions of small objects would be copied by every forked worker.

    Args:
        entries: The entries.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        shapes: dict[tuple[str, ...], int] = {}
        self._shape_of = np.array([shapes.setdefault(tuple(item.members), len(shapes)) for item in entries], np.int32)
        self._shapes = list(shapes)
        self._keys = "".join(item.key for item in entries)
        self._key_ends = np.cumsum([len(item.key) for item in entries], dtype=np.int64)
        places = [place for item in entries for place in item.members.values()]
        self._places = np.array(places, np.int64).reshape(-1, 2)
        self._place_ends = np.cumsum([len(item.members) for item in entries], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._shape_of)

    def key(self, position: int) -> str:
        """The key of one entry."""
        start = self._key_ends[position - 1] if position else 0
        return self._keys[start : self._key_ends[position]]

    @overload
    def __getitem__(self, position: int) -> Entry: ...

    @overload
    def __getitem__(self, position: slice) -> list[Entry]: ...

    def __getitem__(self, position: int | slice) -> Entry | list[Entry]:
        if isinstance(position, slice):
            return [self[number] for number in range(*position.indices(len(self)))]
        position = range(len(self))[position]  # as of any sequence: from behind, and no further than its end
        names, end = self._shapes[self._shape_of[position]], int(self._place_ends[position])
        places = self._places[end - len(names) : end].tolist()
        members = {name: (offset, size) for name, (offset, size) in zip(names, places, strict=True)}
        return Entry(self.key(position), "", members)


@dataclass(frozen=True)
class Lengths:
    """Rendered lengths of a shard's samples under one plan.

    Args:
        tokens: Per sample; 0 for one that does not render.
        costs: Per sample, what the encoders' work costs, in tokens; 0 for one that does not render.
        errors: Position of such a sample -> why.
    """

    tokens: tuple[int, ...]
    costs: tuple[int, ...]
    errors: dict[int, str]


class ShardReader:
    """Reads single samples of indexed shards without scanning; picklable, safe to use in forked workers."""

    def __init__(self) -> None:
        self._local: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ShardReader.__init__(self)

    def read(self, index: ShardIndex, position: int) -> Sample:
        """Read one sample.

        Args:
            index: The shard.
            position: Which of its samples.

        Raises:
            StaleIndexError: If the shard does not hold the members where the index says.
            RecordError: If the record is bad.
        """
        entry = index.entries[position]
        start = min(offset for offset, _ in entry.members.values()) - BLOCK
        end = max(offset + size for offset, size in entry.members.values())
        data = memoryview(self._pread(index.path, start, end - start))
        files = {}
        for name, (offset, size) in entry.members.items():
            header, body = data[offset - BLOCK - start : offset - start], data[offset - start : offset - start + size]
            given = bytes(header[:100]).rstrip(b"\0").decode("utf-8", "replace")
            if given != f"{entry.key}.{name}" or len(body) != size:
                raise StaleIndexError(
                    f"{index.path}: expected '{entry.key}.{name}' of {size} bytes at {offset}, got {given!r}: the "
                    f"index is stale; delete '{index_path(index.path)}'"
                )
            files[name] = bytes(body)
        return assemble(index.path, entry.key, files)

    def _pread(self, path: str, start: int, size: int) -> bytes:
        if is_remote(path):
            return read_ranges(path, [(start, size)])[0]
        descriptor = self._local.get(path)
        if descriptor is None:
            descriptor = self._local[path] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return os.pread(descriptor, size, start)


def index_path(shard: str) -> str:
    """Where a shard's offsets lie."""
    return f"{shard}.idx"


def lengths_path(shard: str, plan_hash: str) -> str:
    """Where a shard's lengths under a plan lie."""
    return f"{shard}.{plan_hash}.len"


def fingerprint(shard: str) -> str:
    """The shard's size and a hash of its first, its last and evenly spaced blocks; no time stamp.

    Raises:
        ShardError: If it cannot be read.
    """
    try:
        size = remote_size(shard) if is_remote(shard) else os.stat(shard).st_size
        last = -(-size // BLOCK) - 1
        starts = [last * probe // _PROBES * BLOCK for probe in range(_PROBES + 1 if size else 0)]
        ranges = [(start, min(BLOCK, size - start)) for start in starts]
        blocks = read_ranges(shard, ranges) if is_remote(shard) else _read_local(shard, ranges)
    except OSError as error:
        raise ShardError(f"{shard}: cannot be opened: {error}") from None
    digest = hashlib.sha256(str(size).encode())
    for block in blocks:
        digest.update(block)
    return f"{size}-{digest.hexdigest()[:32]}"


def _read_local(path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    with open(path, "rb") as stream:
        return [os.pread(stream.fileno(), size, start) for start, size in ranges]


def build_index(shard: str) -> ShardIndex:
    """Scan a shard once, front to back. What is damaged costs only its own samples, and is told.

    Raises:
        ShardError: If it cannot be opened.
    """
    digest = hashlib.sha256()
    scanned = None if is_remote(shard) else scan_headers(shard, digest, _facts_of)
    if scanned is None:
        return _index_carefully(shard)
    entries = []
    for item in scanned:
        task, meta = item.facts or ("", {})
        entries.append(Entry(item.key, task, item.places, meta))
    return ShardIndex(shard, fingerprint(shard), tuple(entries), (), digest.hexdigest())


def _index_carefully(shard: str) -> ShardIndex:
    """The index of any shard, with what is wrong in it."""
    entries: list[Entry] = []
    problems: list[tuple[str, str]] = []
    digest, whole = hashlib.sha256(), True
    try:
        for group in read_groups(shard, digest):
            problem = group.problem or (None if group.whole else _lack_of(shard, group))
            if problem is not None:
                problems.append((group.key, problem))
            else:
                task, meta = _facts_of(group.members.get("json", b""))
                entries.append(Entry(group.key, task, group.places, meta))
    except ShardError as error:
        problems.append(("", str(error)))
        whole = False
    problems = [(key, reason.removeprefix(f"{shard}: ")) for key, reason in problems]
    sha256 = digest.hexdigest() if whole else ""
    return ShardIndex(shard, fingerprint(shard), tuple(entries), tuple(problems), sha256)


def verify_index(index: ShardIndex) -> None:
    """Compare all bytes of a shard with those that it had when it was indexed; the fingerprint compares some.

    Raises:
        StaleIndexError: If they differ, or if there is nothing to compare with.
    """
    if not index.sha256:
        raise StaleIndexError(f"{index.path}: expected a shard that could be read to its end, got a damaged one")
    with open_shard(index.path) as stream:
        found = hashlib.file_digest(cast(Any, stream), "sha256").hexdigest()
    if found != index.sha256:
        raise StaleIndexError(f"{index.path}: expected the bytes with SHA-256 {index.sha256}, got {found}")


def load_index(shard: str) -> ShardIndex:
    """Read a shard's ``.idx``.

    Raises:
        FileNotFoundError: If there is none.
        StaleIndexError: If it belongs to another content of the shard.
    """
    value = read_sidecar(index_path(shard), {"version": INDEX_VERSION, "shard": fingerprint(shard)})
    entries = tuple(
        Entry(key, task, {name: (offset, size) for name, (offset, size) in files.items()}, meta)
        for key, task, files, meta in value["samples"]
    )
    problems = tuple((key, reason) for key, reason in value["problems"])
    return ShardIndex(shard, value["shard"], entries, problems, value["sha256"])


def ensure_index(shard: str) -> ShardIndex:
    """The shard's index; made and written beside it where it is missing, remade with a warning where it is stale.

    Where a damaged shard takes the place of one that was indexed when it was whole, the samples that it has lost are
    among the problems, each by its key.
    """
    before: set[str] = set()
    try:
        return load_index(shard)
    except FileNotFoundError:
        pass
    except StaleIndexError as error:
        warnings.warn(f"{error}; making it anew", stacklevel=2)
        before = keys_in_sidecar(index_path(shard))
    index = build_index(shard)
    if any(not key for key, _ in index.problems):
        there = {entry.key for entry in index.entries} | {key for key, _ in index.problems}
        lost = tuple((key, "lost where the shard is damaged") for key in sorted(before - there))
        index = replace(index, problems=index.problems + lost)
    samples = [[entry.key, entry.task, entry.members, entry.meta] for entry in index.entries]
    facts = {"version": INDEX_VERSION, "shard": index.fingerprint, "sha256": index.sha256}
    write_sidecar(index_path(shard), {**facts, "samples": samples, "problems": index.problems})
    return index


def measure_lengths(index: ShardIndex, plan: BatchPlan, reader: ShardReader) -> Lengths:
    """Rendered length of every sample; a sample that does not render has length 0 and an error."""
    sizes, errors = list[RenderedSize](), dict[int, str]()
    for position in range(len(index)):
        try:
            sizes.append(rendered_size(reader.read(index, position).record, plan))
        except (RecordError, RenderError) as error:
            sizes.append(RenderedSize(0, 0))
            errors[position] = str(error)
    return Lengths(tuple(size.tokens for size in sizes), tuple(size.cost for size in sizes), errors)


def load_lengths(index: ShardIndex, plan_hash: str) -> Lengths:
    """Read a shard's ``.PLANHASH.len``.

    Raises:
        FileNotFoundError: If there is none.
        StaleIndexError: If it was made for another plan or another content of the shard.
    """
    path = lengths_path(index.path, plan_hash)
    value = read_sidecar(path, {"version": INDEX_VERSION, "shard": index.fingerprint, "plan": plan_hash})
    tokens, costs = tuple(value["tokens"]), tuple(value["costs"])
    if not len(tokens) == len(costs) == len(index):
        raise StaleIndexError(f"{path}: expected {len(index)} lengths, got {len(tokens)} and {len(costs)}")
    return Lengths(tokens, costs, {int(position): text for position, text in value["errors"].items()})


def ensure_lengths(index: ShardIndex, plan: BatchPlan, reader: ShardReader) -> Lengths:
    """The shard's lengths under a plan; made where missing, remade with a warning where they are stale."""
    try:
        return load_lengths(index, plan.hash)
    except FileNotFoundError:
        pass
    except StaleIndexError as error:
        warnings.warn(f"{error}; making it anew", stacklevel=2)
    lengths = measure_lengths(index, plan, reader)
    facts = {"version": INDEX_VERSION, "shard": index.fingerprint, "plan": plan.hash}
    measured = {"tokens": list(lengths.tokens), "costs": list(lengths.costs), "errors": lengths.errors}
    write_sidecar(lengths_path(index.path, plan.hash), {**facts, **measured})
    return lengths


def _lack_of(shard: str, group: Group) -> str | None:
    """What the last key before a cut lacks; None if all of it was still read."""
    try:
        assemble(shard, group.key, group.members)
    except RecordError as error:
        return str(error)
    return None


def _facts_of(data: bytes) -> tuple[str, dict[str, Any]]:
    """Task and selectable meta of a record's JSON; empty where it does not parse."""
    try:
        value = parse_json(data)
        task, meta = value["task"], value.get("meta", {})
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", {}
    if not isinstance(task, str) or not isinstance(meta, dict):
        return "", {}
    return task, {name: item for name, item in meta.items() if _selectable(item)}


def _selectable(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= _LONGEST_TAG)
