"""A command of a phase: started so that it hears an interrupt, and given time to save what it has."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_GRACE_SECONDS = 120.0


def start(command: Sequence[str], environment: Mapping[str, str], log: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, so that the terminal's Ctrl-C does not reach it twice.

    A shell starts what stands before an ``&`` deaf to Ctrl-C, and a deaf process has deaf children. The command must
    hear it all the same, since that is how it is told to stop.

    Args:
        command: The command line.
        environment: Its environment.
        log: What it prints goes to the end of this file; to the terminal if None.
    """
    deaf = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if log is None:
            return subprocess.Popen(command, env=dict(environment), start_new_session=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            return subprocess.Popen(
                command, env=dict(environment), start_new_session=True, stdout=file, stderr=subprocess.STDOUT
            )
    finally:
        signal.signal(signal.SIGINT, deaf)


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt commands once and give them time to save; a second Ctrl-C ends them at once."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in processes:
        try:
            process.wait(_GRACE_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()


@contextmanager
def interruptible() -> Iterator[None]:
    """A request to terminate is a KeyboardInterrupt, like Ctrl-C."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
