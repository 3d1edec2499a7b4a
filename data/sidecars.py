"""Small JSON files beside shards; those of remote shards that nobody may write to lie in a cache of this machine."""

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


class StaleIndexError(ValueError):
    """A sidecar that does not belong to its shard or to the plan; names both."""


def cached_path(address: str) -> Path:
    """Where the sidecar of a remote shard lies if it cannot lie beside it."""
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
        else:
            _write_local(Path(path), data)
    except OSError as error:
        warnings.warn(f"{path}: cannot be written ({error}); the next run makes it again", stacklevel=3)


def _bytes_of(path: str) -> bytes:
    """The cached one first: it is there because there could be none beside the shard."""
    if not is_remote(path):
        return Path(path).read_bytes()
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
            return
        except Exception:  # somebody else's bucket; every protocol's client has errors of its own
            pass
    place = cached_path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    _write_local(place, data)


def _write_local(path: Path, data: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
