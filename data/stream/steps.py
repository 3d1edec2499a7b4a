"""Which packs a step holds: a pure function of the seed and the step's number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch.utils.data import Dataset

from data.mixtures import PackSchedule
from data.packing import merge_counts, pack
from data.quarantine import BadSample
from data.render import Rendered
from data.stream.samples import SampleSet
from data.stream.whereabouts import Whereabouts
from layers.batch import Batch, Step
from models.plan import BatchPlan

_MAX_SKIPPED = 1000
_Item = TypeVar("_Item")


class StepDataset(Dataset[tuple[Step, list[BadSample]]]):
    """Step s of one rank: the packs ``s · packs_per_step + rank, + rank + world_size, ...`` of the schedule.

    Args:
        samples: The samples.
        schedule: Which packs there are.
        packs_per_step: Packs of one optimizer step, over all ranks.
        rank: This process.
        world_size: Number of processes.

    Attributes:
        whereabouts: Is told which sample a worker is at.
    """

    whereabouts: Whereabouts | None = None

    def __init__(
        self, samples: SampleSet, schedule: PackSchedule, packs_per_step: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if packs_per_step < world_size:
            raise ValueError(f"packs_per_step: expected at least one per process ({world_size}), got {packs_per_step}")
        self.samples, self.schedule, self.packs_per_step = samples, schedule, packs_per_step
        self.rank, self.world_size = rank, world_size

    def __getitem__(self, step: int) -> tuple[Step, list[BadSample]]:
        """Build a step; bad samples are left out and returned beside it."""
        first = step * self.packs_per_step
        numbers = range(first + self.rank, first + self.packs_per_step, self.world_size)
        packs, bad = list[Batch](), list[BadSample]()
        for number in numbers:
            packs += build_packs(self.samples, self.schedule.pack(number).samples, bad, self.whereabouts)
        # A rank without any pack would leave the others waiting in the gradient exchange: take a later one.
        number, skipped = numbers[-1], 0
        while not packs:
            number, skipped = number + self.packs_per_step, skipped + 1
            if skipped > _MAX_SKIPPED:
                raise ValueError(f"step {step}: expected a usable sample, got {_MAX_SKIPPED} packs without one")
            packs += build_packs(self.samples, self.schedule.pack(number).samples, bad, self.whereabouts)
        choice = self.schedule.pack(first)
        return Step(packs, merge_counts(packs), len(bad), choice.source, choice.probability), bad


class PackDataset(Dataset[tuple[Step, list[BadSample]]]):
    """A fixed list of packs, one per step; for evaluation.

    Args:
        samples: The samples.
        packs: Sample numbers per pack.

    Attributes:
        whereabouts: As of :class:`StepDataset`.
    """

    whereabouts: Whereabouts | None = None

    def __init__(self, samples: SampleSet, packs: Sequence[Sequence[int]]) -> None:
        self.samples, self.packs = samples, packs

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> tuple[Step, list[BadSample]]:
        """Build a step of one pack, or of none if all its samples are bad."""
        bad: list[BadSample] = []
        packs = build_packs(self.samples, self.packs[index], bad, self.whereabouts)
        return Step(packs, merge_counts(packs), len(bad)), bad


def build_packs(
    samples: SampleSet, numbers: Sequence[int], bad: list[BadSample], whereabouts: Whereabouts | None = None
) -> list[Batch]:
    """The pack of these samples; bad ones are appended to ``bad``, and no pack is made of nothing."""
    return pack_good(numbers, samples.rendered, samples.describe, samples.plan, bad, samples.pad_to, whereabouts)


def pack_good(
    items: Sequence[_Item],
    render: Callable[[_Item], Rendered],
    describe: Callable[[_Item, str], BadSample],
    plan: BatchPlan,
    bad: list[BadSample],
    pad_to: int | None = None,
    whereabouts: Whereabouts | None = None,
) -> list[Batch]:
    """One pack of the items that render, or none; the others are described in ``bad``.

    An error that is no sample's fault ends the run; it then says at which sample.
    """
    rendered = []
    for item in items:
        if whereabouts is not None:
            place = describe(item, "")
            whereabouts.note(place.shard, place.key)
        try:
            rendered.append(render(item))
        except ValueError as error:
            bad.append(describe(item, str(error)))
        except Exception as error:
            place = describe(item, "")
            error.add_note(f"while sample '{place.key}' of {place.shard} was made ready")
            raise
    return [pack(rendered, plan, pad_to)] if rendered else []
