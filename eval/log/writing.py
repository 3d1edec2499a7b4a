"""Appending to a log: every row is on disk when the call returns, and a failed write leaves whole lines only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from eval.claims import LEASE_SECONDS, Claims
from eval.log.format import CLAIMS, RUN, Header, LogError, Skipped, check_same
from eval.log.reading import Key, Log, is_torn_header, read_log
from eval.prediction import Prediction

_WHOLE = "log"


class PredictionLog:
    """Appends predictions to one file; to be used in a ``with`` statement.

    Args:
        path: The file, created with its folder if missing, continued if it is there; or, where ``shared``, the folder
            in which this process writes a file of its own.
        header: Of this run.
        shared: Whether other processes write to the same log.
        lease: Seconds without a heartbeat after which another process counts as dead.

    Attributes:
        done: (benchmark, key) of what the log held already, or was appended here.
        dropped: Bytes of unfinished last lines.
        claims: Who does what.
        done_before: Pieces of work that were marked as done before the log was read; what it lacks of them is missing.

    Raises:
        LogError: If the log was written by another run, naming what differs; or if another process is writing the
            file, naming it.
    """

    def __init__(self, path: str | Path, header: Header, *, shared: bool = False, lease: float = LEASE_SECONDS) -> None:
        self.path, self.header, self.shared = Path(path), header, shared
        self.done: set[Key] = set()
        self.dropped = 0
        self.done_before: set[str] = set()
        folder = self.path if shared else self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        self.claims = Claims(
            self.path / CLAIMS if shared else self.path.with_name(f"{self.path.name}.{CLAIMS}"), lease=lease
        )
        self._file = self.path / f"{self.claims.worker.name}.jsonl" if shared else self.path
        self._descriptor: int | None = None
        self._size = 0

    def __enter__(self) -> PredictionLog:
        if self.path.exists() and not self.shared:  # a file that is not ours is refused before anything is written
            self._contents()
        self.claims.__enter__()
        try:
            if self.shared:
                self._join()
                self.done_before = self.claims.done()
            elif not self.claims.take(_WHOLE):
                holders = ", ".join(f"process {other.pid} on {other.host}" for other in self.claims.others())
                raise LogError(
                    f"{self.path}: is being written by {holders or 'another process'}; wait for it, or give a folder "
                    "to --out, which any number of processes may share"
                )
            self._open(self._contents())
        except BaseException:
            self.close()
            raise
        return self

    def append(self, predictions: Iterable[Prediction | Skipped]) -> None:
        """Write rows; they are on disk when this returns.

        Raises:
            LogError: If they cannot be written, such as to a full disk; what was there before is whole.
        """
        rows = list(predictions)
        self._write([row.to_json() for row in rows])
        self.done.update((row.benchmark, row.key) for row in rows if isinstance(row, Prediction))

    def close(self) -> None:
        """Close the file and let go of all claims."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self.claims.__exit__(None, None, None)
        if not self.shared:
            self.claims.remove()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _contents(self) -> Log | None:
        if self.shared and not any(self.path.glob("*.jsonl")):
            return None
        if not self.shared and (not self.path.exists() or _torn_from_the_start(self.path)):
            return None
        log = read_log(self.path)
        check_same(self.path, log.header.identity, self.header.identity)
        return log

    def _join(self) -> None:
        """Write the run's identity, or compare with the one that is there."""
        run = self.path / RUN
        text = json.dumps(self.header.to_json(), ensure_ascii=False, indent=1)
        draft = self.path / f"{RUN}.{self.claims.worker.name}"
        draft.write_text(text)
        try:
            os.link(draft, run)  # whole or not at all, and by one process only
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        check_same(run, json.loads(run.read_text())["identity"], json.loads(text)["identity"])

    def _open(self, contents: Log | None) -> None:
        if contents is not None:
            self.done = set(contents.keys)
            self.dropped = contents.torn
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        if self.shared or contents is None:
            self._descriptor = os.open(self._file, flags | os.O_TRUNC, 0o644)
            self._size = 0
            self._write([self.header.to_json()])
            return
        self._descriptor = os.open(self._file, flags, 0o644)
        self._size = os.fstat(self._descriptor).st_size - self.dropped
        os.ftruncate(self._descriptor, self._size)

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        assert self._descriptor is not None, "a log is used in a with statement"
        lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows]
        data = memoryview("".join(lines).encode())
        try:
            written = 0
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, self._size)
            raise LogError(
                f"{self._file}: cannot be written: {error.strerror}; what it holds so far is whole, and the same "
                "command continues it"
            ) from None
        self._size += len(data)


def open_log(path: str | Path, header: Header, lease: float = LEASE_SECONDS) -> PredictionLog:
    """A log to append to: a file where the name ends in ``.jsonl``, else a folder that processes share."""
    path = Path(path)
    shared = path.is_dir() or (path.suffix != ".jsonl" and not path.is_file())
    return PredictionLog(path, header, shared=shared, lease=lease)


def _torn_from_the_start(path: Path) -> bool:
    with path.open("rb") as stream:
        return is_torn_header(stream.readline())
