"""Small JSON files beside shards.

Where one cannot lie there, it lies in a cache of this machine: beside a remote shard that nobody may write to, or where
another program keeps a file of the same name (Megatron-Energon writes ``X.tar.idx``, too), which is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import fsspec

from data.remote import is_remote

CACHE_VARIABLE = "SWITCHYARD_CACHE"
_OURS = b'{"version"'


class StaleIndexError(ValueError):
    """A sidecar that does not belong to its shard or to the plan; names both."""


def cached_path(address: str) -> Path:
    """Where a sidecar lies that cannot lie beside its shard."""
    if not is_remote(address):
        address = str(Path(address).resolve())
    root = os.environ.get(CACHE_VARIABLE) or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "switchyard")
    name = address.rstrip("/").rsplit("/", 1)[-1]
    return Path(root).expanduser() / "sidecars" / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}-{name}"


def read_sidecar(path: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Read a sidecar that belongs to these facts.

    Raises:
        FileNotFoundError: If there is none.
        StaleIndexError: If it is no JSON, or belongs to other facts.
    """
    try:
        value = json.loads(_bytes_of(path))
    except ValueError as error:
        raise StaleIndexError(f"{path}: expected JSON, got: {error}") from None
    given = {name: value.get(name) for name in facts} if isinstance(value, dict) else value
    if given != facts:
        raise StaleIndexError(f"{path}: expected a sidecar of {facts}, got {given}")
    return value


def keys_in_sidecar(path: str) -> set[str]:
    """The keys in an index of whatever version; none where it tells none."""
    try:
        return {str(item[0]) for item in json.loads(_bytes_of(path))["samples"]}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return set()


def write_sidecar(path: str, value: dict[str, Any]) -> None:
    """Write a sidecar, whole or not at all; where that fails, say so and go on without."""
    data = json.dumps(value, separators=(",", ":")).encode()
    try:
        if is_remote(path):
            _write_remote(path, data)
        elif _is_foreign(Path(path)):
            warnings.warn(f"{path} belongs to another program and is left alone; ours is in the cache", stacklevel=3)
            _write_cached(path, data)
        else:
            _write_local(Path(path), data)
    except OSError as error:
        warnings.warn(f"{path}: cannot be written ({error}); the next run makes it again", stacklevel=3)


def _bytes_of(path: str) -> bytes:
    if not is_remote(path):
        return (cached_path(path) if _is_foreign(Path(path)) else Path(path)).read_bytes()
    with contextlib.suppress(FileNotFoundError):
        return cached_path(path).read_bytes()
    filesystem, inner = fsspec.url_to_fs(path)
    content: bytes = filesystem.cat_file(inner)
    return content


def _write_remote(path: str, data: bytes) -> None:
    if not path.startswith(("http://", "https://")):
        filesystem, inner = fsspec.url_to_fs(path)
        try:
            filesystem.pipe_file(inner, data)
            cached_path(path).unlink(missing_ok=True)  # of a time when it could not be written: it would be read first
            return
        except Exception:  # somebody else's bucket; every protocol's client has errors of its own
            pass
    _write_cached(path, data)


def _write_cached(path: str, data: bytes) -> None:
    place = cached_path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    _write_local(place, data)


def _is_foreign(path: Path) -> bool:
    """Whether there is a file that does not begin as ours do; one of ours that is damaged does."""
    try:
        with path.open("rb") as stream:
            start = stream.read(len(_OURS))
    except FileNotFoundError:
        return False
    return not _OURS.startswith(start) and start != _OURS


def _write_local(path: Path, data: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
