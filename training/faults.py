"""What ends a run, in words: a full disk, a loss that is not finite, too little memory, a data worker that died."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from data.stream.whereabouts import places_of
from layers.batch import Batch

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
_WORKER = re.compile(
    r"DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\) ((?:is killed by signal: |exited unexpectedly)[^.]*)"
)


class TrainingFaultError(RuntimeError):
    """A run has to end; the message says why, and what to do. What was saved before is intact."""


class NotFiniteError(TrainingFaultError):
    """A loss or a gradient became infinite or no number at all."""


class OutOfMemoryError(TrainingFaultError):
    """A step did not fit into memory."""


class NotSavedError(TrainingFaultError):
    """A checkpoint could not be written."""


class StoppedError(SystemExit):
    """A run was asked to stop, and has saved where it is.

    Args:
        message: For people.
        status: Exit status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(status)
        self.message = message


def explained(error: BaseException) -> TrainingFaultError | None:
    """The fault that an error stands for, or None for one that speaks for itself."""
    for cause in _causes(error):
        if isinstance(cause, TrainingFaultError):
            return cause
        if isinstance(cause, OSError) and cause.errno in _NO_SPACE:
            place = f" of '{cause.filename}'" if cause.filename else ""
            return TrainingFaultError(f"the disk{place} is full ({cause.strerror})")
        if is_out_of_memory(cause):
            return OutOfMemoryError(f"out of memory: {_first_line(cause)}")
        if found := _WORKER.search(str(cause)):
            place = "".join(f", at {place}" for place in places_of(cause))
            return TrainingFaultError(
                f"a data worker (process {found[1].strip()}) {found[2].strip().rstrip('.')}{place}; if it was killed, "
                "memory was probably short: give data.init_args.num_workers or slot_mib a smaller number"
            )
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))
    )


@contextmanager
def memory_explained(step: int, packs: Sequence[Batch]) -> Iterator[None]:
    """Say of a step that does not fit into memory how large it was.

    Raises:
        OutOfMemoryError: With the step, its packs and what would make them smaller.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, TrainingFaultError) or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"step {step}: out of memory with packs of {describe_packs(packs)}: {_first_line(error)}. Less memory: a "
            "smaller data.init_args.max_tokens with more packs_per_step, max_media_cost, "
            "model.init_args.acceleration.recomputed, or --trainer.strategy fsdp2"
        ) from error


def describe_packs(packs: Sequence[Batch]) -> str:
    """Sizes of packs: ``2048 tokens (12 samples, 9 image), 1990 tokens (...)``."""
    told = []
    for pack in packs:
        parts = [
            f"{len(pack.sample_lengths)} samples",
            *(f"{len(item.items)} {kind}" for kind, item in pack.media.items()),
        ]
        told.append(f"{pack.input_ids.shape[1]} tokens ({', '.join(parts)})")
    return ", ".join(told)


@dataclass
class _Seen:
    step: int
    norm: Tensor
    sums: Mapping[str, Tensor]
    keys: Sequence[str]


class FiniteGuard:
    """Finds the first step whose gradient is not finite, without having the device waited for at every step.

    Args:
        every_n_steps: Steps between two looks on a device that works ahead; on a CPU every step is looked at.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self._seen: list[_Seen] = []

    def note(self, step: int, norm: Tensor, sums: Mapping[str, Tensor], keys: Sequence[str]) -> None:
        """Take note of a step.

        Args:
            step: Its number.
            norm: Of the gradient, over all processes.
            sums: The losses' sums in this process.
            keys: Samples of the step.

        Raises:
            NotFiniteError: If this step's or an earlier one's norm is not finite.
        """
        self._seen.append(_Seen(step, norm.detach(), sums, keys))
        if norm.device.type == "cpu" or len(self._seen) >= self.every_n_steps:
            self.check()

    def check(self) -> None:
        """Look at the steps noted since the last look; errors as of :meth:`note`."""
        if not self._seen:
            return
        finite = torch.stack([seen.norm for seen in self._seen]).isfinite().tolist()
        bad = [seen for seen, good in zip(self._seen, finite, strict=True) if not good]
        self._seen = []
        if not bad:
            return
        first = bad[0]
        losses = ", ".join(f"{name} {float(value):.4g}" for name, value in first.sums.items() if "/" not in name)
        shown = ", ".join(first.keys[:8]) + (f" and {len(first.keys) - 8} more" if len(first.keys) > 8 else "")
        raise NotFiniteError(
            f"step {first.step}: the gradient's norm is {float(first.norm)}; sums of the losses: {losses}; samples of "
            f"this process: {shown}. Nothing was saved since. A lower learning rate, more warmup_steps or precision "
            "32-true may help; if it is a sample, the source's `where` can leave it out"
        )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
