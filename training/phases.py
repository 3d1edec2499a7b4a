"""A run as a list of phases, each a few command lines with a stamp: one that stopped continues where it was."""

from __future__ import annotations

import fcntl
import hashlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

STAMPS = "phases.json"
_GRACE_SECONDS = 120.0


class PhaseFailedError(RuntimeError):
    """A command of a phase ended with an error."""


class PhaseInterruptedError(RuntimeError):
    """Ctrl-C, or a request to terminate, during a phase."""


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
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    files: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    needs: tuple[str, ...] = ()
    options: tuple[str, ...] = field(default=())


class Stamps:
    """What a run folder remembers: settings of the run, and per phase its fingerprint, state and seconds.

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
        entry = {"name": name, "state": "new", "seconds": 0.0, "fingerprint": None, "command": [], "finished": None}
        self.value["phases"].append(entry)
        return entry

    def save(self) -> None:
        """Write the file at once, so that a crash leaves the old one or the new one."""
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.value, indent=1) + "\n")
        partial.replace(self.path)


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


def run_phases(
    phases: Sequence[Phase],
    run: Path,
    environment: Mapping[str, str],
    selected: Sequence[str] | None = None,
    again: bool = False,
) -> list[str]:
    """Run what is not done yet.

    A phase is done when its stamp says so and carries the present fingerprint. One that stopped is run again, and its
    commands continue from what they wrote. One whose settings changed starts anew, with its old outputs set aside.

    Args:
        phases: All phases of the run, in order.
        run: The run folder.
        environment: The commands' environment.
        selected: Names of the phases to look at; all by default.
        again: Run them even if they are done, their old outputs set aside.

    Returns:
        The names of the phases that were run.

    Raises:
        PhaseFailedError: If a command fails.
        PhaseInterruptedError: On Ctrl-C or a request to terminate.
        ValueError: If a selected phase needs one that is not done.
    """
    stamps, current, ran = Stamps(run), fingerprints(phases), []
    for phase in phases:
        if selected is not None and phase.name not in selected:
            continue
        entry = stamps.of(phase.name)
        if _is_done(entry, current[phase.name]) and not again:
            print(f"[{phase.name}] done before, in {clock(entry['seconds'])}", flush=True)
            continue
        undone = [need for need in phase.needs if not _is_done(stamps.of(need), current[need])]
        if undone:
            raise ValueError(f"phase '{phase.name}' needs {undone}, which are not done with the present settings")
        if again or entry["fingerprint"] not in (None, current[phase.name]):
            _set_aside(phase, run)
            entry["seconds"] = 0.0
        entry |= {
            "state": "started",
            "fingerprint": current[phase.name],
            "command": [" ".join((*command, *phase.options)) for command in phase.commands],
        }
        stamps.save()
        _run_phase(phase, entry, stamps, environment)
        ran.append(phase.name)
    return ran


def clock(seconds: float) -> str:
    """Seconds as ``12 s`` or ``3 min 05 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


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


def _is_done(entry: Mapping[str, Any], fingerprint: str) -> bool:
    return entry["state"] == "done" and entry["fingerprint"] == fingerprint


def _run_phase(phase: Phase, entry: dict[str, Any], stamps: Stamps, environment: Mapping[str, str]) -> None:
    before, start = entry["seconds"], time.monotonic()

    def stamp(state: str) -> None:
        entry["state"] = state
        entry["seconds"] = round(before + time.monotonic() - start, 1)
        entry["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        stamps.save()

    for command in phase.commands:
        line = (*command, *phase.options)
        print(f"[{phase.name}] {' '.join(line)}", flush=True)
        try:
            status = _call(line, environment)
        except KeyboardInterrupt:
            stamp("stopped")
            raise PhaseInterruptedError(f"in phase '{phase.name}' after {clock(entry['seconds'])}") from None
        if status:
            stamp("failed")
            raise PhaseFailedError(f"phase '{phase.name}': status {status} of: {' '.join(line)}")
    stamp("done")
    print(f"[{phase.name}] done in {clock(entry['seconds'])}", flush=True)


def _call(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command; on Ctrl-C or a request to terminate, interrupt it once and give it time to save what it has.

    A shell starts what stands before an ``&`` deaf to Ctrl-C, and a deaf process has deaf children. The command must
    hear it all the same, since that is how it is told to stop; in a session of its own the terminal does not reach it.
    """
    deaf = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, env=dict(environment), start_new_session=True)
    signal.signal(signal.SIGINT, deaf)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return process.wait()
    except KeyboardInterrupt:
        print("\nstopping: giving the command time to save (Ctrl-C again ends it at once)", flush=True)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_GRACE_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def _set_aside(phase: Phase, run: Path) -> None:
    number = 1 + len(list((run / "superseded").glob(f"{phase.name}-*")))
    folder = run / "superseded" / f"{phase.name}-{number}"
    for path in phase.outputs:
        if path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            path.rename(folder / path.name)
            print(f"[{phase.name}] runs anew: {path} is now {folder / path.name}", flush=True)
