"""Which sample every data worker is at: it is still there to be read when a worker has died."""

from __future__ import annotations

import mmap
import os
import re
from weakref import WeakSet

from torch.utils.data import get_worker_info

_ROOM = 1024
_DEAD = re.compile(r"DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\)")
_OPEN: WeakSet[Whereabouts] = WeakSet()


class Whereabouts:
    """A line per worker, in memory that forked workers share with the trainer.

    Args:
        workers: How many.
    """

    def __init__(self, workers: int) -> None:
        self._lines = mmap.mmap(-1, workers * _ROOM)
        _OPEN.add(self)

    def note(self, shard: str, key: str) -> None:
        """Say, in a worker, what it is at; elsewhere nothing happens."""
        info = get_worker_info()
        if info is not None:
            line = f"{os.getpid()} sample '{key}' of {shard}".encode()[: _ROOM - 1]
            start = info.id * _ROOM
            self._lines[start : start + len(line) + 1] = line + b"\0"

    def of(self, process: int) -> str | None:
        """What a worker was last at; None if there is no such worker, or it has not begun."""
        for start in range(0, len(self._lines), _ROOM):
            line = self._lines[start : start + _ROOM].partition(b"\0")[0].decode("utf-8", "replace")
            given, _, place = line.partition(" ")
            if given == str(process):
                return place
        return None


def places_of(error: BaseException) -> list[str]:
    """What the workers were last at that died, by PyTorch's error, wherever in the trainer it was raised."""
    found = _DEAD.search(str(error))
    processes = [int(number) for number in found[1].split(",") if number.strip()] if found else []
    places = [lines.of(process) for process in processes for lines in _OPEN]
    return [place for place in places if place is not None]
