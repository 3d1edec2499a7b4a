"""The Lightning data module: packed steps for training, fixed packs for validation."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler, get_worker_info

from data.index import ensure_index
from data.mixtures import Mixture, PackSchedule, Source
from data.packing import plan_packs
from data.quarantine import Quarantine
from data.shards import expand
from data.stream import Oversize, PackDataset, Parcel, SampleSet, Slots, StepDataset
from layers.batch import Step
from models.plan import BatchPlan

_PREFETCHED = 2  # steps per worker

__all__ = ["EvalLoader", "PackedDataModule", "Source", "StepLoader"]


class PackedDataModule(LightningDataModule):
    """Delivers :class:`layers.batch.Step`: the packs of one optimizer step with their loss counts.

    The training stream is endless, so give the trainer ``max_steps``, unless the mixture has a budget. What step s
    holds depends on the seed, the data and s alone: not on the number of worker processes, nor on the number of
    processes that train, which share a step's packs. So a resumed run continues exactly where it stopped, also on
    another machine. A bad sample is left out and written down.

    Args:
        sources: Training sources.
        mixture: How they are mixed; by default each by its weight, all in one.
        max_tokens: Tokens that a pack may hold.
        packs_per_step: Packs per optimizer step, over all processes.
        num_workers: Worker processes that read, decode and render; 0 does it in the training process.
        seed: Seed of the order.
        val_sources: Validation sources; their packs come in a fixed order.
        plan: The model's plan; ``train.py`` links it.
        quarantine: Bad samples are appended to this JSON Lines file; by default ``quarantine.jsonl`` under the
            trainer's root.
        max_quarantined: Share of the samples that may be bad before the run ends.
        oversize: "error", "split" (between the turns of a dialogue) or "quarantine", for a sample longer than
            ``max_tokens``.
        cache: Keep rendered samples in memory, for small data that is read many times.
        max_media_cost: Work of the encoders that a pack may hold, in tokens that cost the language model as much;
            None balances it between packs without a limit. A sample with more shares its pack with text alone.
        slot_mib: Room for one step in the memory that workers share with the trainer, in MiB; a larger step takes
            memory of its own, and with 0 every step does.
    """

    def __init__(
        self,
        sources: list[Source],
        mixture: Mixture | None = None,
        max_tokens: int = 4096,
        packs_per_step: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        val_sources: list[Source] | None = None,
        plan: BatchPlan | None = None,
        quarantine: str | None = None,
        max_quarantined: float = 0.05,
        oversize: Oversize = "error",
        cache: bool = False,
        max_media_cost: int | None = None,
        slot_mib: int = 256,
    ) -> None:
        super().__init__()
        if not sources:
            raise ValueError("sources: expected at least one, got none")
        if max_tokens < 1 or packs_per_step < 1:
            raise ValueError(f"expected max_tokens and packs_per_step >= 1, got {max_tokens} and {packs_per_step}")
        self.sources, self.val_sources = sources, val_sources or []
        self.mixture = mixture or Mixture()
        self.max_tokens, self.packs_per_step = max_tokens, packs_per_step
        self.num_workers, self.seed = num_workers, seed
        self.plan = plan
        self.quarantine_path, self.max_quarantined = quarantine, max_quarantined
        self.oversize, self.cache = oversize, cache
        self.max_media_cost, self.slot_mib = max_media_cost, slot_mib
        self._train: SampleSet | None = None
        self._val: SampleSet | None = None
        self._step = 0
        self._schedule: PackSchedule | None = None
        self._position: dict[str, Any] | None = None

    def set_plan(self, plan: BatchPlan) -> None:
        """Set the model's plan, before the first loader is asked for."""
        self.plan, self._train, self._val = plan, None, None

    def prepare_data(self) -> None:
        """Index shards that have no index yet, once per machine."""
        for source in (*self.sources, *self.val_sources):
            for path in expand(source.path):
                ensure_index(path)

    @property
    def next_step(self) -> int:
        """The step that the training stream continues with."""
        if self.trainer is not None:
            total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
            return int(total.processed)
        return self._step

    @next_step.setter
    def next_step(self, step: int) -> None:
        self._step = step

    @property
    def data_hashes(self) -> dict[str, str]:
        """Shard -> fingerprint, of the shards in use."""
        sets = [item for item in (self._train, self._val) if item is not None]
        return {path: value for item in sets for path, value in item.data_hashes.items()}

    def train_samples(self) -> SampleSet:
        """The training samples under the plan."""
        if self._train is None:
            self._train = self._open(self.sources)
        return self._train

    def val_samples(self) -> SampleSet:
        """The validation samples under the plan."""
        if self._val is None:
            self._val = self._open(self.val_sources)
        return self._val

    def train_dataloader(self) -> StepLoader:
        """The endless stream of steps, from :attr:`next_step` on."""
        samples = self.train_samples()
        self._schedule = PackSchedule(
            samples.source_of,
            samples.lengths,
            self.sources,
            self.max_tokens,
            self.seed,
            self.mixture,
            self.packs_per_step,
            samples.costs,
            self.max_media_cost,
        )
        if self._position is not None:
            self._schedule.seek(self._position)
        dataset = StepDataset(samples, self._schedule, self.packs_per_step, *self._ranks())
        return StepLoader(dataset, self, self._quarantine(samples))

    def val_dataloader(self) -> EvalLoader | list[Any]:
        """Every validation pack once, one per step, split over the processes."""
        if not self.val_sources:
            return []
        samples = self.val_samples()
        rank, world_size = self._ranks()
        return EvalLoader(samples, self._quarantine(samples), self.num_workers, rank, world_size)

    def state_dict(self) -> dict[str, Any]:
        """The next step, where its round of the mixture begins, and what its content depends on."""
        step, schedule = self.next_step, self._schedule
        position = schedule.position(step * self.packs_per_step) if schedule is not None else None
        return {"next_step": step, "position": position, "order": self._order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a run.

        Raises:
            ValueError: If the steps of this configuration are not those of the interrupted run.
        """
        order = self._order()
        changed = {
            name: (value, order.get(name)) for name, value in state_dict["order"].items() if order.get(name) != value
        }
        if changed:
            told = ", ".join(f"{name}: expected {old}, got {new}" for name, (old, new) in changed.items())
            raise ValueError(f"the interrupted run's data order cannot be continued: {told}")
        self.next_step, self._position = state_dict["next_step"], state_dict["position"]

    def _order(self) -> dict[str, Any]:
        samples = self.train_samples()
        shares = [[source.weight, source.tasks, source.where, source.max_samples] for source in self.sources]
        facts = json.dumps([list(samples.data_hashes.values()), shares, asdict(self.mixture)])
        return {
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "packs_per_step": self.packs_per_step,
            "max_media_cost": self.max_media_cost,
            "oversize": self.oversize,
            "plan": samples.plan.hash,
            "data": hashlib.sha256(facts.encode()).hexdigest()[:16],
        }

    def _open(self, sources: Sequence[Source]) -> SampleSet:
        if self.plan is None:
            raise ValueError("data: expected the model's plan, got none; link it or call set_plan first")
        return SampleSet(sources, self.plan, self.max_tokens, self.oversize, self.cache)

    def _quarantine(self, samples: SampleSet) -> Quarantine:
        path = self.quarantine_path
        if path is None and self.trainer is not None:
            path = str(Path(self.trainer.default_root_dir) / "quarantine.jsonl")
        quarantine = Quarantine(path, samples.num_samples, self.max_quarantined)
        quarantine.add(samples.bad)
        return quarantine

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)


class StepLoader:
    """Iterates over steps from the data module's next step on, without end or to the end of the mixture's budget.

    Args:
        dataset: Builds steps.
        module: Knows the next step.
        quarantine: Takes the bad samples.
    """

    def __init__(self, dataset: StepDataset, module: PackedDataModule, quarantine: Quarantine) -> None:
        self.dataset, self.module, self.quarantine = dataset, module, quarantine
        self._steps = dataset.schedule.num_steps()

    def __len__(self) -> int:
        if self._steps is None:
            raise TypeError("the training stream has no end: expected a mixture with a budget of epochs or tokens")
        return self._steps

    def __iter__(self) -> Iterator[Step]:
        first = self.module.next_step
        order = _From(first) if self._steps is None else range(first, self._steps)
        slots = _slots(self.module.num_workers, self.module.slot_mib)
        loader = _loader(self.dataset, order, self.module.num_workers, slots)
        for number, item in enumerate(loader, first):
            step, bad = item.unpack(slots) if isinstance(item, Parcel) else item
            self.quarantine.add(bad)
            self.module.next_step = number + 1
            yield step


class EvalLoader:
    """Iterates over packs of all samples in a fixed order, one pack per step.

    Args:
        samples: The samples.
        quarantine: Takes the bad ones; None raises nothing and keeps no list.
        num_workers: Worker processes.
        rank: This process takes packs ``rank, rank + world_size, ...``.
        world_size: Number of processes.
    """

    def __init__(
        self,
        samples: SampleSet,
        quarantine: Quarantine | None = None,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        packs = plan_packs(samples.lengths, samples.max_tokens, 0, 0, shuffle=False).packs
        self.dataset = PackDataset(samples, packs[rank::world_size])
        self.quarantine, self.num_workers = quarantine, num_workers

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Step]:
        for item in _loader(self.dataset, range(len(self.dataset)), self.num_workers):
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
    dataset: StepDataset | PackDataset, order: Sampler[int] | range, num_workers: int, slots: Slots | None = None
) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=order,
        num_workers=num_workers,
        prefetch_factor=_PREFETCHED if num_workers else None,
        collate_fn=partial(_parcel, slots=slots),
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(0),  # the loader would draw from the global one
    )


def _slots(num_workers: int, mib: int) -> Slots | None:
    """Shared memory for every step that may be on its way at once; workers that are not forked would not see it."""
    if num_workers == 0 or mib == 0 or multiprocessing.get_start_method() != "fork":
        return None
    return Slots(num_workers * _PREFETCHED + 2, mib * 2**20)


def _parcel(item: Any, slots: Slots | None) -> Any:
    return Parcel(*item, slots=slots) if get_worker_info() is not None else item


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
