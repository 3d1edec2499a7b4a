"""The pool that heads share: experts load once, when first needed, and the one used longest ago makes room."""

from __future__ import annotations

import gc
import os
import re
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import torch

from heads.experts.files import ExpertError

T = TypeVar("T")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\Z", re.IGNORECASE)
_SHARE_OF_FREE = 0.8
"""Of a device's free memory; the rest is for what experts compute."""


class Expert(ABC):
    """Something frozen that a pool can load."""

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """Equal for experts that can be one in memory."""

    @abstractmethod
    def num_bytes(self, dtype: torch.dtype) -> int:
        """Memory that it takes with floats of ``dtype``; nothing is loaded to know it.

        Raises:
            ExpertError: If it cannot be used.
        """

    @abstractmethod
    def load(self, device: torch.device, dtype: torch.dtype, progress: bool) -> Any:
        """Load it, in evaluation mode and without gradients for its parameters."""


@dataclass
class _Loaded:
    value: Any
    num_bytes: int
    in_use: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)


class ExpertPool:
    """Loaded experts under a memory budget.

    Give one pool to all heads of a model. An expert that would exceed the budget first sends away those used longest
    ago; one that runs out of memory while it works sends away all others, and is asked once more.

    Args:
        memory: Budget of the experts' weights, such as ``12 GiB``, or bytes. Four fifths of the device's free memory at
            the first loading, by default.
        device: Where experts work; by default where their heads are.
        dtype: Of their weights: ``float32``, ``bfloat16`` or ``float16``; by default float32 on a CPU, and on an
            accelerator bfloat16, or float16 where it has none.
        progress: Whether to show bars while experts load and work.
    """

    def __init__(
        self,
        memory: str | int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        progress: bool = False,
    ) -> None:
        if dtype not in (None, "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype: expected float32, bfloat16 or float16, got {dtype!r}")
        self.memory = None if memory is None else parse_memory(memory)
        self.device = None if device is None else torch.device(device)
        self.progress = progress
        self._dtype = None if dtype is None else getattr(torch, dtype)
        self._loaded: OrderedDict[tuple[Hashable, torch.device, torch.dtype], _Loaded] = OrderedDict()
        self._lock = threading.RLock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies of heads share their pool."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Another process loads its experts for itself."""
        return {"memory": self.memory, "device": self.device, "progress": self.progress, "_dtype": self._dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _loaded=OrderedDict(), _lock=threading.RLock())

    @property
    def loaded(self) -> dict[Hashable, int]:
        """Key -> bytes of the experts in memory, the one used longest ago first."""
        with self._lock:
            return {key[0]: item.num_bytes for key, item in self._loaded.items()}

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The type of weights on a device."""
        if self._dtype is not None:
            return self._dtype
        if device.type == "cpu":
            return torch.float32
        if device.type == "cuda" and not torch.cuda.is_bf16_supported():
            return torch.float16
        return torch.bfloat16

    @contextmanager
    def borrow(self, expert: Expert, device: torch.device) -> Iterator[Any]:
        """The loaded expert, for one user at a time; it stays while it is in use.

        Args:
            expert: What to load if it is not there.
            device: Where its head is; the pool's own device comes first.

        Raises:
            ExpertError: If it cannot be used, or is larger than the budget.
        """
        with self._lock:
            item = self._take(expert, _numbered(self.device or device))
            item.in_use += 1
        try:
            with item.lock:
                yield item.value
        finally:
            with self._lock:
                item.in_use -= 1

    def ask(self, expert: Expert, device: torch.device, question: Callable[[Any], T]) -> T:
        """What ``question`` makes of the expert; once more without all other experts if memory runs out.

        Raises:
            ExpertError: As :meth:`borrow`.
            torch.OutOfMemoryError: If it runs out of memory alone.
        """
        try:
            with self.borrow(expert, device) as value:
                return question(value)
        except torch.OutOfMemoryError:
            if not self.clear(but=expert):
                raise
        with self.borrow(expert, device) as value:
            return question(value)

    def clear(self, but: Expert | None = None) -> int:
        """Send away all experts that are not in use.

        Args:
            but: One that stays.

        Returns:
            The bytes of their weights.
        """
        with self._lock:
            keys = [key for key, item in self._loaded.items() if not item.in_use and (but is None or key[0] != but.key)]
            return self._evict(keys)

    def _take(self, expert: Expert, device: torch.device) -> _Loaded:
        dtype = self.dtype_on(device)
        key = (expert.key, device, dtype)
        if key in self._loaded:
            self._loaded.move_to_end(key)
            return self._loaded[key]
        num_bytes = expert.num_bytes(dtype)
        if self.memory is None:
            self.memory = int(_SHARE_OF_FREE * free_memory(device))
        if num_bytes > self.memory:
            raise ExpertError(
                f"expert {expert.key}: its weights take {_words(num_bytes)} as {dtype}, expected at most the pool's "
                f"budget of {_words(self.memory)}"
            )
        self._make_room(num_bytes, self.memory)
        # A tensor made in inference mode could never take part in training.
        with torch.inference_mode(False):
            value = expert.load(device, dtype, self.progress)
        self._loaded[key] = _Loaded(value, num_bytes)
        return self._loaded[key]

    def _make_room(self, num_bytes: int, budget: int) -> None:
        held = sum(item.num_bytes for item in self._loaded.values())
        leaving = []
        for key, item in self._loaded.items():
            if held + num_bytes <= budget:
                break
            if not item.in_use:
                leaving.append(key)
                held -= item.num_bytes
        self._evict(leaving)
        if held + num_bytes > budget:
            raise ExpertError(
                f"{_words(num_bytes)} more exceed the pool's budget of {_words(budget)}: all experts are in use"
            )

    def _evict(self, keys: list[tuple[Hashable, torch.device, torch.dtype]]) -> int:
        freed = sum(self._loaded.pop(key).num_bytes for key in keys)
        if keys:
            gc.collect()  # pipelines refer to themselves
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return freed


def parse_memory(memory: str | int) -> int:
    """Bytes of ``12 GiB``, ``500MB`` or a number.

    Raises:
        ValueError: If it reads otherwise.
    """
    if isinstance(memory, int):
        return memory
    match = _MEMORY.match(memory.strip())
    if match is None:
        raise ValueError(f"memory: expected bytes, or a number with KiB, MiB, GiB or MB, GB, got {memory!r}")
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * (1024 if match[3] or not power else 1000) ** power)


def free_memory(device: torch.device) -> int:
    """Bytes that a device has free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _numbered(device: torch.device) -> torch.device:
    """The device by its number, so that ``cuda`` and ``cuda:0`` are one."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _words(num_bytes: int) -> str:
    return f"{num_bytes / 1024**3:.2f} GiB" if num_bytes >= 1024**3 else f"{num_bytes / 1024**2:.1f} MiB"
