"""How a step leaves a worker: all its tensors in one buffer, in memory that was shared beforehand where there is room.

A fresh shared block per step costs system calls, and a page fault for every 4 KiB that is touched first by the worker
and then by the trainer. :class:`Slots` are mapped once, before the workers start, and used again and again.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch import multiprocessing as mp

from data.quarantine import BadSample
from layers.batch import Batch, HeadCall, MediaBatch, Step

_ALIGNMENT = 64


@dataclass
class _Slot:
    offset: int
    shape: torch.Size
    dtype: torch.dtype


class Slots:
    """Equal blocks of shared memory, lent to workers and taken back when their content has been copied out.

    The memory is anonymous: forked workers inherit it, the limit of ``/dev/shm`` does not bind it, and a block that is
    never used takes no room.

    Args:
        count: Blocks; at least as many as parcels may be on their way at once, or workers wait for each other.
        size: Bytes per block.
    """

    def __init__(self, count: int, size: int) -> None:
        self._mapping = mmap.mmap(-1, count * size)
        self.memory = torch.frombuffer(self._mapping, dtype=torch.uint8).view(count, size)
        self._free: mp.SimpleQueue[int] = mp.SimpleQueue()
        for number in range(count):
            self._free.put(number)

    def take(self) -> int:
        """The number of a free block, in a worker; waits for one."""
        return int(self._free.get())

    def give_back(self, number: int) -> None:
        """Free a block, in the trainer."""
        self._free.put(number)


class Parcel:
    """A step on its way out of a worker.

    Args:
        step: The step.
        bad: The bad samples found on the way.
        slots: Where to put the tensors; without it, or where they do not fit, they get a buffer of their own.
    """

    def __init__(self, step: Step, bad: list[BadSample], slots: Slots | None = None) -> None:
        pieces: list[tuple[int, Tensor]] = []
        self._size = 0

        def stow(tensor: Tensor) -> _Slot:
            slot = _Slot(self._size, tensor.shape, tensor.dtype)
            flat = tensor.contiguous().reshape(-1).view(torch.uint8)
            pieces.append((self._size, flat))
            self._size += -(-len(flat) // _ALIGNMENT) * _ALIGNMENT
            return slot

        self.step, self.bad = _map(step, Tensor, stow), bad
        self.slot: int | None = None
        self.buffer: Tensor | None = None
        if slots is not None and self._size <= slots.memory.shape[1]:
            self.slot = slots.take()
            target = slots.memory[self.slot]
        else:
            target = self.buffer = torch.empty(self._size, dtype=torch.uint8)
        for offset, flat in pieces:
            target[offset : offset + len(flat)] = flat

    def unpack(self, slots: Slots | None = None) -> tuple[Step, list[BadSample]]:
        """The step, its tensors views of one buffer, and the bad samples; frees the parcel's block.

        The buffer is pinned where there is a GPU, so that copies to it need not wait.
        """
        pinned = torch.cuda.is_available()
        if self.slot is not None:
            assert slots is not None
            buffer = torch.empty(self._size, dtype=torch.uint8, pin_memory=pinned)
            buffer.copy_(slots.memory[self.slot, : self._size])
            slots.give_back(self.slot)
        else:
            assert self.buffer is not None
            buffer = self.buffer.pin_memory() if pinned else self.buffer

        def fetch(slot: _Slot) -> Tensor:
            size = slot.shape.numel() * slot.dtype.itemsize
            return buffer[slot.offset : slot.offset + size].view(slot.dtype).reshape(slot.shape)

        return _map(self.step, _Slot, fetch), self.bad


def _map(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {name: _map(item, kind, change) for name, item in value.items()}
    if isinstance(value, list):
        return [_map(item, kind, change) for item in value]
    if is_dataclass(value) and isinstance(value, Step | Batch | MediaBatch | HeadCall):
        return replace(value, **{f.name: _map(getattr(value, f.name), kind, change) for f in fields(value)})
    return value
