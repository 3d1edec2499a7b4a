"""Phases that run beside each other, on the screen: a bar and the last line of each."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_STEPS = re.compile(r"\bstep ([\d,]+)/([\d,]+)")
_TAIL_BYTES = 4096


class Screen:
    """A row for every phase that writes to a log instead of the terminal; elsewhere a line now and then.

    Args:
        every_n_seconds: Between two lines of a phase where the output is no terminal.
    """

    def __init__(self, every_n_seconds: float = 60.0) -> None:
        self.every_n_seconds = every_n_seconds
        self.console = Console(file=sys.stderr)
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, float] = {}

    def show(self, logs: Mapping[str, Path]) -> None:
        """Bring it up to date.

        Args:
            logs: Running phase -> its log.
        """
        if not self.console.is_terminal:
            self._tell(logs)
            return
        for name in set(self._tasks) - set(logs):
            self._remove(name)
        for name, log in logs.items():
            if self._progress is None:
                columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
                self._progress = Progress(*columns, TextColumn("{task.fields[line]}"), console=self.console)
                self._progress.start()
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(name, total=None, line="")
            line = last_line(log)
            done, total = steps(line) or (0, None)
            self._progress.update(self._tasks[name], completed=done, total=total, line=line)

    def close(self) -> None:
        """Take all rows away."""
        for name in list(self._tasks):
            self._remove(name)

    def _remove(self, name: str) -> None:
        assert self._progress is not None
        self._progress.remove_task(self._tasks.pop(name))
        if not self._tasks:
            self._progress.stop()
            self._progress = None

    def _tell(self, logs: Mapping[str, Path]) -> None:
        now = time.monotonic()
        for name, log in logs.items():
            if now - self._told.setdefault(name, now) >= self.every_n_seconds:
                self._told[name] = now
                self.console.print(f"[{name}] {last_line(log)}", highlight=False, markup=False, soft_wrap=True)


def last_line(log: Path) -> str:
    """The last line of a log that says something; empty if there is none yet."""
    return next(iter(reversed(tail(log))), "")


def tail(log: Path, count: int = 20) -> list[str]:
    """The last lines of a log that say something."""
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()][-count:]


def steps(line: str) -> tuple[int, int] | None:
    """(done, to do) where a line says "step 20/1,500"."""
    match = _STEPS.search(line)
    return (int(match[1].replace(",", "")), int(match[2].replace(",", ""))) if match else None
