"""A run as a list of phases, and the fingerprint that says whether one has to run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Phase:
    """One step of a run.

    Args:
        name: Its name in the stamps.
        commands: Command lines, run in order.
        files: Files besides the commands that decide the result; their contents are part of the fingerprint.
        outputs: What it writes; set aside when the phase runs again with other settings.
        needs: Earlier phases whose results it reads.
        options: Arguments appended to every command that do not change what is computed (precision, device).
        shares: Whether it may run beside others that say so too, each on its part of the cores.
        environment: What its commands' environment has besides; nothing that changes what is computed.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    files: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    needs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    shares: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def fingerprints(phases: Sequence[Phase]) -> dict[str, str]:
    """Phase -> hash of its commands, its files and the fingerprints of the phases that it needs.

    Raises:
        ValueError: If a phase needs one that does not come before it, or a file is missing.
    """
    found: dict[str, str] = {}
    for phase in phases:
        missing = [need for need in phase.needs if need not in found]
        if missing:
            raise ValueError(f"phase '{phase.name}': expected {missing} before it, got {list(found)}")
        absent = [str(path) for path in phase.files if not path.is_file()]
        if absent:
            raise ValueError(f"phase '{phase.name}': expected the files {absent}, which do not exist")
        digest = hashlib.sha256(json.dumps([phase.commands, [found[need] for need in phase.needs]]).encode())
        for path in phase.files:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        found[phase.name] = digest.hexdigest()
    return found


def clock(seconds: float) -> str:
    """A duration in words: ``12 s``, ``3 min 05 s``, ``1 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
