"""What a run folder remembers of its phases, and that one process at a time works in it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STAMPS = "phases.json"


class Stamps:
    """What a run folder remembers: settings of the run, and per phase its fingerprint, state and times at work.

    ``intervals`` are (begin, end) in seconds of Unix time, ``seconds`` their sum; phases may run beside each other.

    Args:
        run: The run folder, created if missing.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / STAMPS
        self.value: dict[str, Any] = {"settings": {}, "phases": []}
        run.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self.value = json.loads(self.path.read_text())

    @property
    def settings(self) -> dict[str, Any]:
        """Choices that a continued run keeps."""
        settings: dict[str, Any] = self.value["settings"]
        return settings

    def of(self, name: str) -> dict[str, Any]:
        """The entry of a phase, made if missing."""
        for entry in self.value["phases"]:
            if entry["name"] == name:
                found: dict[str, Any] = entry
                return found
        times = {"seconds": 0.0, "intervals": [], "finished": None}
        entry = {"name": name, "state": "new", "fingerprint": None, "command": [], **times}
        self.value["phases"].append(entry)
        return entry

    def save(self) -> None:
        """Write the file at once, so that a crash leaves the old one or the new one."""
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.value, indent=1) + "\n")
        partial.replace(self.path)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder for this process.

    Raises:
        ValueError: If another process holds it.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at work in '{run}'; wait for it, or name another --run") from None
        yield
