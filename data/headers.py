"""The headers of a shard alone, where all of it is as writers leave it: a fraction of tarfile's time, the same result.

Whatever is not plain, from a long name to a damaged byte, is left to :func:`data.shards.read_groups`, which tells what
is wrong and where.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from data.shards import BLOCK, Digest, ShardError, open_shard, split_member_name

_WINDOW = 2**23
_ZEROS = bytes(BLOCK)
_REGULAR = (b"0", b"\0")
_NUMBERS = ((100, 108), (108, 116), (116, 124), (136, 148), (329, 337), (337, 345))  # fields beside the size
_T = TypeVar("_T")


@dataclass
class Scanned(Generic[_T]):
    """A sample of a plain shard.

    Args:
        key: The key.
        facts: What was asked of its record; None if it has none.
        places: Member name -> (offset of the data, size), in bytes.
    """

    key: str
    facts: _T | None = None
    places: dict[str, tuple[int, int]] = field(default_factory=dict)


def scan_headers(path: str, digest: Digest, facts_of: Callable[[bytes], _T]) -> list[Scanned[_T]] | None:
    """The samples of a local shard, in order, read once from front to back.

    Args:
        path: The shard.
        digest: A hash that is given all bytes; useless where the result is None.
        facts_of: What to keep of the bytes of every ``KEY.json``.

    Returns:
        The samples; None if anything is not plain: a header that is not ustar's or whose sum is wrong, a name that is
        not ours, a key in two places, a member twice, an end that is missing or followed by anything.
    """
    try:
        with open_shard(path) as stream, ThreadPoolExecutor(1) as hasher:
            scan = _Scan(stream.fileno(), facts_of)
            while window := stream.read(_WINDOW):
                hashing = hasher.submit(digest.update, window)
                plain = scan.window(window)
                hashing.result()
                if not plain:
                    return None
            return scan.samples if scan.is_whole else None
    except (ShardError, OSError):
        return None


class _Scan(Generic[_T]):
    def __init__(self, descriptor: int, facts_of: Callable[[bytes], _T]) -> None:
        self.descriptor, self.facts_of = descriptor, facts_of
        self.samples: list[Scanned[_T]] = []
        self._keys: set[str] = set()
        self._good_names: set[str] = set()
        self._good_numbers: set[bytes] = set()
        self._offset = 0  # of the next header
        self._end: int | None = None  # of the last member
        self._start = self._stop = 0  # of the window
        self._window = b""

    @property
    def is_whole(self) -> bool:
        """Whether the end was found, as long as it has to be."""
        size = self._stop
        return self._end is not None and size % BLOCK == 0 and size - self._end >= 2 * BLOCK

    def window(self, window: bytes) -> bool:
        """Take the next bytes; whether all headers that begin in them are plain."""
        self._window, self._start, self._stop = window, self._stop, self._stop + len(window)
        headers = []
        while self._end is None and self._offset < self._stop:
            header = self._take(self._offset, BLOCK)
            if header == _ZEROS:
                self._end = self._offset
            elif len(header) == BLOCK and self._member(header):
                headers.append(header)
            else:
                return False
        if self._end is not None and window[max(0, self._end - self._start) :].strip(b"\0"):
            return False
        return _sums_hold(headers)

    def _take(self, place: int, size: int) -> bytes:
        at = place - self._start
        if at + size <= len(self._window):
            return self._window[at : at + size]
        return os.pread(self.descriptor, size, place)

    def _member(self, header: bytes) -> bool:
        if header[257:262] != b"ustar" or header[156:157] not in _REGULAR or header[345:500].strip(b"\0"):
            return False
        numbers = header[100:124] + header[136:148] + header[329:345]
        if numbers not in self._good_numbers:
            if any(_octal(header[start:stop]) is None for start, stop in _NUMBERS):
                return False
            self._good_numbers.add(numbers)
        size = _octal(header[124:136])
        try:
            text = header[:100].partition(b"\0")[0].decode("ascii")
        except UnicodeDecodeError:
            return False
        key, _, name = text.partition(".")
        if not self.samples or key != self.samples[-1].key or name not in self._good_names:
            try:
                split_member_name(text)
            except ShardError:
                return False
            self._good_names.add(name)
        if size is None or not self._enter(key, name, size):
            return False
        self._offset += BLOCK + -(-size // BLOCK) * BLOCK
        return True

    def _enter(self, key: str, name: str, size: int) -> bool:
        if not self.samples or key != self.samples[-1].key:
            if key in self._keys:
                return False
            self._keys.add(key)
            self.samples.append(Scanned(key))
        sample = self.samples[-1]
        if name in sample.places:
            return False
        place = self._offset + BLOCK
        sample.places[name] = (place, size)
        if name == "json":
            record = self._take(place, size)
            if len(record) < size:
                return False
            sample.facts = self.facts_of(record)
        return True


def _octal(digits: bytes) -> int | None:
    """A header's number; None if it is not written in octal digits alone."""
    digits = digits.strip(b" \0")
    try:
        return int(digits, 8) if digits.isdigit() else None if digits else 0
    except ValueError:
        return None


def _sums_hold(headers: Sequence[bytes]) -> bool:
    """Whether each header's bytes add up to what it says, its own sum taken as eight spaces."""
    if not headers:
        return True
    told = [_octal(header[148:156]) for header in headers]
    blocks = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, BLOCK)
    sums = blocks.sum(1, dtype=np.int64) - blocks[:, 148:156].sum(1, dtype=np.int64) + 8 * ord(" ")
    return told == sums.tolist()
