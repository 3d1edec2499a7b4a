"""How a step leaves a worker: all its tensors in one buffer, in memory that was shared beforehand where there is room.

A fresh shared block per step costs system calls, and a page fault for every 4 KiB that is touched first by the worker
and then by the trainer. :class:`Slots` are mapped once, before the workers start, and used again and again.
"""

from __future__ import annotations

import io
import mmap
import multiprocessing
import pickle
import weakref
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.quarantine import BadSample
from layers.batch import Step

MOST_LENT = 2
"""Steps that the trainer may look at where they lie: the one that it works on, and the next."""
_ALIGNMENT = 64


class Slots:
    """Equal blocks of shared memory, lent to workers and taken back when nobody looks at their content any more.

    The memory is anonymous: forked workers inherit it, the limit of ``/dev/shm`` does not bind it, and a block that is
    never used takes no room.

    Args:
        count: Blocks; at least as many as parcels may be on their way at once, and :data:`MOST_LENT` more, or workers
            wait for each other.
        size: Bytes per block.
    """

    def __init__(self, count: int, size: int) -> None:
        self.size = size
        self._mapping = mmap.mmap(-1, count * size)
        # A stack, so that the blocks in use are few and warm: how many are free, then their numbers.
        self._stack = np.frombuffer(mmap.mmap(-1, 8 * (count + 1)), np.int64)
        self._stack[:] = (count, *range(count))
        self._free, self._lock = multiprocessing.Semaphore(count), multiprocessing.Lock()
        self._lent = 0
        self._returned: deque[int] = deque()  # a tensor may go at any moment, while the lock is held too

    def memory(self, number: int, size: int) -> Tensor:
        """The first bytes of a block."""
        return torch.from_numpy(self._array(number, size))

    def take(self) -> int:
        """The number of a free block, in a worker; waits for one."""
        self._free.acquire()
        with self._lock:
            number = int(self._stack[self._stack[0]])
            self._stack[0] -= 1
        return number

    def give_back(self, number: int) -> None:
        """Free a block, in the trainer."""
        with self._lock:
            self._stack[0] += 1
            self._stack[self._stack[0]] = number
        self._free.release()

    def lend(self, number: int, size: int) -> Tensor | None:
        """A block's content where it lies, in the trainer: the block is free when the last tensor over it is gone.

        Returns:
            (size,) bytes; None if so many are lent already that workers would have to wait for one.
        """
        while self._returned:
            self.give_back(self._returned.popleft())
            self._lent -= 1
        if self._lent >= MOST_LENT:
            return None
        array = self._array(number, size)
        weakref.finalize(array, self._returned.append, number).atexit = False
        self._lent += 1
        return torch.from_numpy(array)  # holds on to the array as long as any tensor looks at its memory

    def _array(self, number: int, size: int) -> np.ndarray:
        return np.frombuffer(self._mapping, np.uint8, size, number * self.size)


class Parcel:
    """A step on its way out of a worker.

    Args:
        step: The step.
        bad: The bad samples found on the way.
        slots: Where to put the tensors; without it, or where they do not fit, they get a buffer of their own.
    """

    def __init__(self, step: Step, bad: list[BadSample], slots: Slots | None = None) -> None:
        stower = _Stower()
        stower.dump((step, bad))
        self.content, self.size = stower.stream.getvalue(), stower.size
        self.slot: int | None = None
        self.buffer: Tensor | None = None
        if slots is not None and 0 < self.size <= slots.size:
            self.slot = slots.take()
            target = slots.memory(self.slot, self.size)
        else:
            target = self.buffer = torch.empty(self.size, dtype=torch.uint8)
        for offset, flat in stower.pieces:
            target[offset : offset + len(flat)] = flat

    def unpack(self, slots: Slots | None = None) -> tuple[Step, list[BadSample]]:
        """The step, its tensors views of one buffer, and the bad samples.

        Where there is a GPU the buffer is pinned, so that copies to it need not wait, and the parcel's block is free at
        once. Without any accelerator the tensors lie in the block itself, as long as few steps are held at a time.
        """
        pinned = torch.cuda.is_available()
        if self.slot is not None:
            assert slots is not None
            stays = not torch.accelerator.is_available()  # a copy to one may still be reading when the step is gone
            buffer = slots.lend(self.slot, self.size) if stays else None
            if buffer is None:
                buffer = torch.empty(self.size, dtype=torch.uint8, pin_memory=pinned)
                buffer.copy_(slots.memory(self.slot, self.size))
                slots.give_back(self.slot)
        else:
            assert self.buffer is not None
            buffer = self.buffer.pin_memory() if pinned else self.buffer
        content: tuple[Step, list[BadSample]] = _Fetcher(self.content, buffer).load()
        return content


class _Stower(pickle.Pickler):
    """Pickles everything but the tensors, for which it writes where they will lie."""

    def __init__(self) -> None:
        self.stream = io.BytesIO()
        super().__init__(self.stream, pickle.HIGHEST_PROTOCOL)
        self.pieces: list[tuple[int, Tensor]] = []
        self.size = 0

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        axes = None
        if not value.is_contiguous():  # a decoded image is (H, W, 3) in memory, and stays so
            strides = value.stride()
            order = sorted(range(value.ndim), key=lambda axis: -strides[axis])
            if value.permute(order).is_contiguous():
                axes = tuple(order.index(axis) for axis in range(value.ndim))
                value = value.permute(order)
        place = self.size, tuple(value.shape), value.dtype, axes
        flat = value.contiguous().reshape(-1).view(torch.uint8)
        self.pieces.append((self.size, flat))
        self.size += -(-len(flat) // _ALIGNMENT) * _ALIGNMENT
        return place


class _Fetcher(pickle.Unpickler):
    """The inverse, over the buffer; it reads nothing but what a worker of this run has written."""

    def __init__(self, content: bytes, buffer: Tensor) -> None:
        super().__init__(io.BytesIO(content))
        self.buffer = buffer

    def persistent_load(self, place: Any) -> Tensor:
        offset, shape, dtype, axes = place
        size = dtype.itemsize
        for side in shape:
            size *= side
        tensor = self.buffer[offset : offset + size].view(dtype).reshape(shape)
        return tensor if axes is None else tensor.permute(axes)
