"""Asking whatever a directory that transformers wrote holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.askers.asker import Asker
from eval.askers.session import Decoding

_PROBES, _PROBE, _WHOLE = 64, 2**16, 2**24
_HASHED = (".json", ".jinja", ".safetensors", ".model", ".txt")


class DirectoryAsker(Asker):
    """Asks a model from a directory that transformers wrote; no code in it is run.

    Args:
        directory: With ``config.json``.
        decoding: How.
        control: "random_weights" asks a model of the same configuration that was never trained.

    Raises:
        ValueError: If there is no such directory.
    """

    controls = frozenset({"blind", "shuffled", "random_weights"})
    decoded = "greedy"
    """What logs call its way of answering."""

    def __init__(self, directory: str | Path, decoding: Decoding, control: str | None = None) -> None:
        self.directory, self.decoding, self.control = Path(directory), decoding, control
        if not (self.directory / "config.json").is_file():
            raise ValueError(f"expected a directory that transformers wrote, with config.json, got '{directory}'")

    @property
    def identity(self) -> Mapping[str, Any]:
        """Hash of the directory's files (of large ones: samples of their bytes), and how it is decoded."""
        session = {"constrained": False, "dtype": self.decoding.dtype, "decoding": self.decoded, "by": "transformers"}
        return {"checkpoint_sha256": directory_sha256(self.directory), "session": session}

    @property
    def info(self) -> Mapping[str, Any]:
        """Where and how fast."""
        return {
            "checkpoint": str(self.directory),
            "device": self.decoding.place,
            "batch_size": self.decoding.batch_size,
        }


def directory_sha256(directory: Path) -> str:
    """Of a directory's files by name: whole small ones, evenly spaced samples of large ones."""
    digest = hashlib.sha256()
    for path in sorted(item for item in directory.iterdir() if item.suffix in _HASHED):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as stream:
            if size <= _WHOLE:
                digest.update(stream.read())
                continue
            for probe in range(_PROBES):
                stream.seek(probe * (size - _PROBE) // (_PROBES - 1))
                digest.update(stream.read(_PROBE))
    return digest.hexdigest()
