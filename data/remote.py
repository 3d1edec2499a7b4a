"""Remote files through fsspec: byte ranges without read-ahead, blocks front to back, again when a connection fails."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import fsspec

ATTEMPTS = 5
BLOCK_BYTES = 16 * 2**20
_FIRST_PAUSE = 0.5
_FINAL = (FileNotFoundError, PermissionError, NotImplementedError)
_Value = TypeVar("_Value")


class RemoteError(OSError):
    """A remote file cannot be read; names it, what was expected and what was given."""


class NoRangesError(RemoteError):
    """A server sends whole files only."""


def is_remote(path: str) -> bool:
    """Whether a path is an fsspec address such as ``https://...`` or ``s3://...``."""
    return "://" in path


def remote_size(path: str) -> int:
    """Bytes of a remote file.

    Raises:
        RemoteError: If it cannot be told.
    """
    filesystem, inner = fsspec.url_to_fs(path)
    size = _persistently(path, lambda: filesystem.size(inner))
    if size is None:
        raise RemoteError(f"{path}: expected a file whose size the server tells, got none")
    return int(size)


def read_ranges(path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Several (start, size) parts of a remote file, asked for at once where the protocol can.

    Raises:
        RemoteError: If a part cannot be read, or has another size, as from a server that knows no ranges.
    """
    filesystem, inner = fsspec.url_to_fs(path)
    starts, ends = [start for start, _ in ranges], [start + size for start, size in ranges]

    def fetch() -> list[bytes]:
        parts = filesystem.cat_ranges([inner] * len(ranges), starts, ends, on_error="raise")
        for (start, size), part in zip(ranges, parts, strict=True):
            if len(part) != size:
                raise RemoteError(
                    f"expected {size} bytes from {start} on, got {len(part)}: the server serves no ranges"
                )
        return [bytes(part) for part in parts]

    return _persistently(path, fetch)


def open_remote(path: str) -> io.RawIOBase:
    """A remote file to be read front to back; reading raises :class:`RemoteError`.

    From servers that serve ranges it comes in blocks, each asked for again when the connection fails; from others as
    one stream.

    Raises:
        RemoteError: If it does not exist or cannot be read.
    """
    filesystem, inner = fsspec.url_to_fs(path)
    info = _persistently(path, lambda: filesystem.info(inner))
    if info.get("partial", True) and info.get("size") is not None:
        blocks = _Blocks(path, int(info["size"]))
        try:
            blocks.fetch()
            return blocks
        except NoRangesError:
            pass
    return _Stream(path, _persistently(path, lambda: filesystem.open(inner, "rb", block_size=0)))


class _Stream(io.RawIOBase):
    """Reads what a server sends, once."""

    def __init__(self, path: str, stream: Any) -> None:
        self.path, self.stream = path, stream

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what comes next."""
        try:
            part = self.stream.read(len(buffer))
        except Exception as error:
            raise RemoteError(f"{self.path}: cannot be read further: {error!r}") from error
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        """Close the connection."""
        if not self.closed:
            self.stream.close()
        super().close()


class _Blocks(io.RawIOBase):
    """Reads a remote file in blocks."""

    def __init__(self, path: str, size: int) -> None:
        self.path, self.size = path, size
        self._place = 0
        self._block, self._start = b"", 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The next byte."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        return self._place

    def fetch(self) -> None:
        """Get the block that begins with the next byte."""
        self._start = self._place
        size = min(BLOCK_BYTES, self.size - self._place)
        self._block = read_ranges(self.path, [(self._place, size)])[0] if size else b""

    def readinto(self, buffer: Any) -> int:
        """Read what the present block holds; another block at its end."""
        if self._place >= self.size:
            return 0
        if not 0 <= self._place - self._start < len(self._block):
            self.fetch()
        inside = self._place - self._start
        part = self._block[inside : inside + len(buffer)]
        buffer[: len(part)] = part
        self._place += len(part)
        return len(part)


def _persistently(path: str, read: Callable[[], _Value]) -> _Value:
    """Try several times, with longer and longer pauses; what is not there is not asked for again."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return read()
        except RemoteError:
            raise
        except _FINAL as error:
            raise RemoteError(f"{path}: cannot be read: {error!r}") from error
        except Exception as error:  # every protocol's client has errors of its own
            if attempt == ATTEMPTS:
                raise RemoteError(f"{path}: cannot be read after {ATTEMPTS} attempts: {error!r}") from error
            time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
    raise AssertionError
