"""From datasets of steps to the steps themselves: workers, shared memory, the quarantine, and where a run stands."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Sampler, get_worker_info

from data.features import FeatureLookup
from data.packing import plan_packs
from data.quarantine import Quarantine
from data.stream.parcels import MOST_LENT, Parcel, Slots
from data.stream.samples import SampleSet
from data.stream.steps import PackDataset, StepDataset
from data.stream.streaming import StreamingSteps
from data.stream.whereabouts import Whereabouts, places_of
from layers.batch import Step

_PREFETCHED = 2  # steps per worker
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


class Progress(Protocol):
    """Knows the next step, and is told when one was delivered."""

    next_step: int


class StepLoader:
    """Iterates over steps from the next one on, without end or to the end of the mixture's budget.

    Args:
        dataset: Builds steps.
        progress: Knows the next step.
        quarantine: Takes the bad samples.
        num_workers: Worker processes.
        slot_mib: Shared memory per step on its way.
        features: Puts into packs what frozen encoders gave before.
    """

    def __init__(
        self,
        dataset: StepDataset | StreamingSteps,
        progress: Progress,
        quarantine: Quarantine,
        num_workers: int = 0,
        slot_mib: int = 256,
        features: FeatureLookup | None = None,
    ) -> None:
        self.dataset, self.progress, self.quarantine, self.features = dataset, progress, quarantine, features
        self.num_workers, self.slot_mib = num_workers, slot_mib
        self._steps = dataset.schedule.num_steps() if isinstance(dataset, StepDataset) else None

    def __len__(self) -> int:
        if self._steps is None:
            raise TypeError("the training stream has no end: expected a mixture with a budget of epochs or tokens")
        return self._steps

    def __iter__(self) -> Iterator[Step]:
        first = self.progress.next_step
        order: Sampler[int] | range | None = _From(first) if self._steps is None else range(first, self._steps)
        if isinstance(self.dataset, StreamingSteps):
            self.dataset.first, order = first, None
        slots = _slots(self.num_workers, self.slot_mib)
        loader = _loader(self.dataset, order, self.num_workers, slots, self.features)
        for number, item in enumerate(_watched(loader), first):
            step, bad = item.unpack(slots) if isinstance(item, Parcel) else item
            del item
            if order is None:
                self.quarantine.num_samples += len(bad) + sum(len(pack.sample_lengths) for pack in step.packs)
            self.quarantine.add(bad)
            self.progress.next_step = number + 1
            yield step
            del step  # its memory is wanted again


class EvalLoader:
    """Iterates over packs of all samples in a fixed order, one pack per step.

    Args:
        samples: The samples.
        quarantine: Takes the bad ones; None raises nothing and keeps no list.
        num_workers: Worker processes.
        rank: This process takes packs ``rank, rank + world_size, ...``; the last of its steps may have none.
        world_size: Number of processes.
        features: Puts into packs what frozen encoders gave before.
    """

    def __init__(
        self,
        samples: SampleSet,
        quarantine: Quarantine | None = None,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        features: FeatureLookup | None = None,
    ) -> None:
        packs = plan_packs(samples.lengths, samples.max_tokens, 0, 0, shuffle=False).packs
        packs += [[]] * (-len(packs) % world_size)  # every process takes part in every step
        self.dataset = PackDataset(samples, packs[rank::world_size])
        self.quarantine, self.num_workers, self.features = quarantine, num_workers, features

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Step]:
        loader = _loader(self.dataset, range(len(self.dataset)), self.num_workers, None, self.features)
        for item in _watched(loader):
            step, bad = item.unpack() if isinstance(item, Parcel) else item
            if self.quarantine is not None:
                self.quarantine.add(bad)
            yield step


class _From(Sampler[int]):
    """The numbers from ``first`` on."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        number = self.first
        while True:
            yield number
            number += 1


def _loader(
    dataset: StepDataset | PackDataset | StreamingSteps,
    order: Sampler[int] | range | None,
    num_workers: int,
    slots: Slots | None,
    features: FeatureLookup | None,
) -> DataLoader[Any]:
    dataset.whereabouts = Whereabouts(num_workers) if _forks(num_workers) else None
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=order,
        num_workers=num_workers,
        prefetch_factor=_PREFETCHED if num_workers else None,
        collate_fn=partial(_parcel, slots=slots, features=features),
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(0),  # the loader would draw from the global one
    )


def _slots(num_workers: int, mib: int) -> Slots | None:
    """Shared memory for every step that may be on its way at once; workers that are not forked would not see it."""
    if mib == 0 or not _forks(num_workers):
        return None
    return Slots(num_workers * _PREFETCHED + 1 + MOST_LENT, mib * 2**20)


def _forks(num_workers: int) -> bool:
    return num_workers > 0 and multiprocessing.get_start_method() == "fork"


def _watched(loader: DataLoader[Any]) -> Iterator[Any]:
    """What the loader gives; of a worker that died, the error also says at which sample."""
    iterator = iter(loader)
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            places = places_of(error)
            if not places:
                raise
            raise RuntimeError(f"{str(error).rstrip(' .')}. It was last at {' and '.join(places)}.") from error
        yield item
        del item


def _parcel(item: Any, slots: Slots | None, features: FeatureLookup | None) -> Any:
    if features is not None:
        features.attach(item[0].packs)
    if get_worker_info() is None:
        return item
    step, bad = item
    return Parcel(step, bad, slots)


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # collections would touch, and so copy, every object that was inherited
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have the C library keep what is freed: the next step takes as much again, with a page fault for every 4 KiB."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # not every C library has it
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, 2**25)
