"""Work shared through files: any number of processes on any machines that see one folder may join, die and come back.

A piece of work is claimed by creating a file that must not exist yet (``O_EXCL``), which holds the claimer's name. Each
worker keeps one heartbeat file fresh; the claims of a worker whose heartbeat is older than the lease are taken over.
Ages are differences between times of one file system, so that the machines' clocks do not matter. Nothing here is
needed for correct results: if two workers do the same piece after all (one was stopped for longer than the lease and
woke up), the log counts a sample once, see :mod:`eval.log`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

LEASE_SECONDS = 60.0
_BEATS_PER_LEASE = 6
_CLAIM, _DONE = ".claim", ".done"


@dataclass(frozen=True)
class Worker:
    """Who claims.

    Args:
        name: Unique, fit for file names.
        host: Of the machine.
        pid: On it.
        start: When the process started, in the kernel's ticks; a process id alone is reused.
    """

    name: str
    host: str
    pid: int
    start: int

    @classmethod
    def this(cls) -> Worker:
        """This process, under a new name."""
        host, pid = socket.gethostname(), os.getpid()
        return cls(f"{_fit(host)}-{pid}-{secrets.token_hex(4)}", host, pid, _start_of(pid))

    @property
    def is_dead(self) -> bool:
        """Whether it is a process of this machine that is no more; False where that cannot be told."""
        if self.host != socket.gethostname() or self.start == 0:
            return False
        return _start_of(self.pid) != self.start


class Claims:
    """Claims pieces of work in a folder; to be used in a ``with`` statement, which keeps the heartbeat.

    Args:
        folder: Shared; created if missing.
        worker: Who claims; this process by default.
        lease: Seconds without a heartbeat after which a worker counts as dead.
    """

    def __init__(self, folder: str | Path, worker: Worker | None = None, lease: float = LEASE_SECONDS) -> None:
        self.folder = Path(folder)
        self.worker = worker or Worker.this()
        self.lease = lease
        self._held: set[str] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Claims:
        self._beat(create=True)
        self._thread = threading.Thread(target=self._keep_beating, name="claims-heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for name in sorted(self._held):
            self._path(name, _CLAIM).unlink(missing_ok=True)
        self._heartbeat(self.worker.name).unlink(missing_ok=True)

    def take(self, name: str) -> bool:
        """Claim a piece of work.

        Args:
            name: Of the piece, fit for file names.

        Returns:
            Whether it is this worker's now: it was free, or its holder is dead.
        """
        path = self._path(name, _CLAIM)
        if not self._create(path):
            holder = self._holder(path)
            if holder is None or not self._is_gone(holder) or not self._clear(path, holder):
                return False
            if not self._create(path):
                return False
        self._held.add(name)
        return True

    def finish(self, name: str) -> None:
        """Mark a piece as done, and let it go."""
        self._path(name, _DONE).touch()
        self.release(name)

    def release(self, name: str) -> None:
        """Let a piece go without having done it."""
        self._held.discard(name)
        self._path(name, _CLAIM).unlink(missing_ok=True)

    def is_done(self, name: str) -> bool:
        """Whether a piece is marked as done."""
        return self._path(name, _DONE).exists()

    def done(self) -> set[str]:
        """Names of the pieces that are marked as done."""
        return {path.name.removesuffix(_DONE) for path in self.folder.glob(f"*{_DONE}")}

    def forget(self, names: Iterable[str]) -> None:
        """Take back that pieces are done; for those of which samples are missing after all."""
        for name in names:
            self._path(name, _DONE).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder, if nobody uses it."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def others(self) -> Iterator[Worker]:
        """Workers beside this one that are alive, as far as can be told."""
        for path in sorted(self.folder.glob("*.worker")):
            holder = self._read_worker(path)
            if holder is not None and holder.name != self.worker.name and not self._is_gone(holder):
                yield holder

    def _is_gone(self, holder: Worker) -> bool:
        if holder.name == self.worker.name:
            return False
        if holder.is_dead:
            return True
        try:
            beat = self._heartbeat(holder.name).stat().st_mtime
        except FileNotFoundError:  # it left properly, or never got as far as a heartbeat
            return True
        return self._now() - beat > self.lease

    def _clear(self, path: Path, holder: Worker) -> bool:
        """Take away a dead worker's claim; of several who try, one succeeds."""
        aside = path.with_name(f"{path.name}.{self.worker.name}")
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return False
        found = self._read_worker(aside)
        if found is not None and found.name != holder.name:  # another took it over in between: give it back
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
            aside.unlink()
            return False
        aside.unlink()
        return True

    def _holder(self, path: Path) -> Worker | None:
        """Who holds a claim. One that cannot be read was torn by a death within its creation once it is old."""
        holder = self._read_worker(path)
        if holder is not None:
            return holder
        try:
            age = self._now() - path.stat().st_mtime
        except FileNotFoundError:
            return None
        return Worker("", "", 0, 0) if age > self.lease else None

    def _create(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as stream:
            stream.write(json.dumps(vars(self.worker)))
        return True

    def _read_worker(self, path: Path) -> Worker | None:
        try:
            return Worker(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _now(self) -> float:
        """The file system's time, as the age of this worker's own fresh heartbeat has it."""
        self._beat()
        return self._heartbeat(self.worker.name).stat().st_mtime

    def _beat(self, create: bool = False) -> None:
        path = self._heartbeat(self.worker.name)
        if create or not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(vars(self.worker)))
        else:
            os.utime(path)

    def _keep_beating(self) -> None:
        while not self._stop.wait(self.lease / _BEATS_PER_LEASE):
            with contextlib.suppress(OSError):  # a full disk or a network that is away for a moment
                self._beat()

    def _heartbeat(self, name: str) -> Path:
        return self.folder / f"{name or 'nobody'}.worker"

    def _path(self, name: str, ending: str) -> Path:
        return self.folder / f"{name}{ending}"


def _fit(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)[:40] or "host"


def _start_of(pid: int) -> int:
    """When a process of this machine started, 0 if there is none or that cannot be told."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = stat.rsplit(")", 1)[1].split()
    return 0 if fields[0] in "ZX" else int(fields[19])  # a zombie is dead
