"""Run the phases that are not done yet, some of them beside each other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from subprocess import Popen
from typing import Any

from training.phases.command import interruptible, start, stop
from training.phases.plan import Phase, clock, fingerprints
from training.phases.screen import Screen, tail
from training.phases.stamps import Stamps

_POLL_SECONDS = 0.1


class PhaseFailedError(RuntimeError):
    """A command of a phase ended with an error."""


class PhaseInterruptedError(RuntimeError):
    """Ctrl-C, or a request to terminate, during a phase."""


def run_phases(
    phases: Sequence[Phase],
    run: Path,
    environment: Mapping[str, str],
    selected: Sequence[str] | None = None,
    again: bool = False,
    sharing: Mapping[str, str] | None = None,
    lanes: int = 1,
) -> list[str]:
    """Run what is not done yet.

    A phase is done when its stamp says so and carries the present fingerprint. One that stopped is run again, and its
    commands continue from what they wrote. One whose settings changed starts anew, with its old outputs set aside.

    With several lanes, phases that share run beside each other as soon as what they need is done. What they print goes
    to ``logs/PHASE.log`` in the run folder, and the screen shows a row for each.

    Args:
        phases: All phases of the run, in order.
        run: The run folder.
        environment: The commands' environment.
        selected: Names of the phases to look at; all by default.
        again: Run them even if they are done, their old outputs set aside.
        sharing: What the environment of a phase that shares has besides (fewer threads, say), whether or not another
            runs beside it at the moment: a phase that stops and continues computes the same.
        lanes: How many phases that share may run at once.

    Returns:
        The names of the phases that were run, in the order in which they started.

    Raises:
        PhaseFailedError: If a command fails; what ran beside it is stopped.
        PhaseInterruptedError: On Ctrl-C or a request to terminate.
        ValueError: If a selected phase needs one that is neither done nor selected.
    """
    stamps, current = Stamps(run), fingerprints(phases)
    waiting: list[Phase] = []
    for phase in phases:
        if selected is not None and phase.name not in selected:
            continue
        entry = stamps.of(phase.name)
        if _is_done(entry, current[phase.name]) and not again:
            print(f"[{phase.name}] done before, in {clock(entry['seconds'])}", flush=True)
            continue
        coming = {other.name for other in waiting}
        undone = [n for n in phase.needs if n not in coming and not _is_done(stamps.of(n), current[n])]
        if undone:
            raise ValueError(f"phase '{phase.name}' needs {undone}, which are not done with the present settings")
        waiting.append(phase)
    runner = _Runner(run, stamps, current, environment, {**environment, **(sharing or {})}, lanes, again)
    with interruptible():
        return runner.run(waiting)


class _Runner:
    """The phases that run at the moment, and those that have run."""

    def __init__(
        self,
        run: Path,
        stamps: Stamps,
        fingerprint: Mapping[str, str],
        alone: Mapping[str, str],
        sharing: Mapping[str, str],
        lanes: int,
        again: bool,
    ) -> None:
        self.run_folder, self.stamps, self.fingerprint = run, stamps, fingerprint
        self.alone, self.sharing, self.lanes, self.again = alone, sharing, lanes, again
        self.running: list[_Running] = []
        self.started: list[str] = []
        self.screen = Screen()

    def run(self, waiting: list[Phase]) -> list[str]:
        """Run them all; returns their names in the order in which they started."""
        try:
            while waiting or self.running:
                for phase in [phase for phase in waiting if self._may_start(phase, waiting)]:
                    if self._has_room_for(phase):
                        waiting.remove(phase)
                        self._start(phase)
                time.sleep(_POLL_SECONDS)
                self._look()
        except KeyboardInterrupt:
            self.screen.close()
            print("\nstopping: giving the command time to save (Ctrl-C again ends it at once)", flush=True)
            self._stop()
            told = " and ".join(f"'{item.phase.name}' after {clock(item.entry['seconds'])}" for item in self.running)
            raise PhaseInterruptedError(f"in phase {told}" if told else "between two phases") from None
        finally:
            self.screen.close()
        return self.started

    def _may_start(self, phase: Phase, waiting: Sequence[Phase]) -> bool:
        coming = {other.name for other in waiting} | {item.phase.name for item in self.running}
        return not coming.intersection(phase.needs)

    def _has_room_for(self, phase: Phase) -> bool:
        if not self.running:
            return True
        return len(self.running) < self.lanes and phase.shares and all(item.phase.shares for item in self.running)

    def _start(self, phase: Phase) -> None:
        entry = self.stamps.of(phase.name)
        if self.again or entry["fingerprint"] not in (None, self.fingerprint[phase.name]):
            _set_aside(phase, self.run_folder)
            entry |= {"seconds": 0.0, "intervals": []}
        entry |= {
            "state": "started",
            "fingerprint": self.fingerprint[phase.name],
            "command": [" ".join((*command, *phase.options)) for command in phase.commands],
        }
        self.stamps.save()
        self.started.append(phase.name)
        shares = phase.shares and self.lanes > 1
        log = self.run_folder / "logs" / f"{phase.name}.log" if shares else None
        environment = {**(self.sharing if phase.shares else self.alone), **phase.environment}
        self.running.append(_Running(phase, entry, self.stamps, environment, log))

    def _look(self) -> None:
        for item in list(self.running):
            status = item.look()
            if status is None:
                continue
            self.running.remove(item)
            if status:
                self.screen.close()
                self._stop()
                told = "".join(f"\n  {line}" for line in tail(item.log)) if item.log else ""
                where = f"\nThe end of {item.log}:{told}" if item.log else ""
                raise PhaseFailedError(f"phase '{item.phase.name}': status {status} of: {' '.join(item.line)}{where}")
        self.screen.show({item.phase.name: item.log for item in self.running if item.log})

    def _stop(self) -> None:
        stop([item.process for item in self.running])
        for item in self.running:
            item.stamp("stopped")


class _Running:
    """A phase at work: one command after the other."""

    def __init__(
        self, phase: Phase, entry: dict[str, Any], stamps: Stamps, environment: Mapping[str, str], log: Path | None
    ) -> None:
        self.phase, self.entry, self.stamps, self.environment, self.log = phase, entry, stamps, environment, log
        self._before, self._begun = list(entry.get("intervals", [])), time.time()
        self._commands = iter(phase.commands)
        self.line: tuple[str, ...] = ()
        self.process = self._next()

    def look(self) -> int | None:
        """None while it runs, then its status: 0 when the last command has ended well."""
        status = self.process.poll()
        if status is None:
            return None
        if status:
            self.stamp("failed")
            return status
        try:
            self.process = self._next()
        except StopIteration:
            self.stamp("done")
            print(f"[{self.phase.name}] done in {clock(self.entry['seconds'])}", flush=True)
            return 0
        return None

    def stamp(self, state: str) -> None:
        """Write down how it stands."""
        intervals = [*self._before, [round(self._begun, 1), round(time.time(), 1)]]
        self.entry |= {
            "state": state,
            "intervals": intervals,
            "seconds": round(sum(end - begin for begin, end in intervals), 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.stamps.save()

    def _next(self) -> Popen[bytes]:
        self.line = (*next(self._commands), *self.phase.options)
        print(f"[{self.phase.name}] {' '.join(self.line)}", flush=True)
        return start(self.line, self.environment, self.log)


def _is_done(entry: Mapping[str, Any], fingerprint: str) -> bool:
    return bool(entry["state"] == "done" and entry["fingerprint"] == fingerprint)


def _set_aside(phase: Phase, run: Path) -> None:
    number = 1 + len(list((run / "superseded").glob(f"{phase.name}-*")))
    folder = run / "superseded" / f"{phase.name}-{number}"
    for path in phase.outputs:
        if path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            path.rename(folder / path.name)
            print(f"[{phase.name}] runs anew: {path} is now {folder / path.name}", flush=True)
