"""The endless training stream: which packs a step holds is a pure function of the seed and the step's number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.index import ShardIndex, ShardReader, ensure_index, ensure_lengths
from data.media import decode_media, decode_target
from data.mixtures import PackSchedule, Source
from data.packing import merge_counts, pack
from data.quarantine import BadSample
from data.render import Rendered, render
from data.shards import Sample, expand
from layers.batch import Batch, HeadCall, MediaBatch, Step
from models.plan import BatchPlan

Oversize = Literal["error", "quarantine"]
_ALIGNMENT = 64
_MAX_SKIPPED = 1000


class SampleSet:
    """The samples of several sources under one plan, numbered through; reads and renders any of them.

    Args:
        sources: The sources.
        plan: The model's plan.
        max_tokens: Tokens that a pack may hold.
        oversize: Whether a longer sample is an error or quarantined.
        cache: Keep rendered samples in memory (each worker its own).

    Attributes:
        source_of: (N,) source of each usable sample.
        lengths: (N,) its rendered length.
        bad: Samples that do not render or are too long.
        num_samples: Usable and bad ones together.
        data_hashes: Shard -> fingerprint.

    Raises:
        ValueError: If a source has no sample of its tasks, or a sample is too long and that is an error.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        plan: BatchPlan,
        max_tokens: int,
        oversize: Oversize = "error",
        cache: bool = False,
    ) -> None:
        self.plan, self.max_tokens = plan, max_tokens
        self.bad: list[BadSample] = []
        self.data_hashes: dict[str, str] = {}
        self._reader = ShardReader()
        self._indices: list[ShardIndex] = []
        self._cache: dict[int, Rendered] | None = {} if cache else None
        rows: list[tuple[int, int, int, int]] = []
        for number, source in enumerate(sources):
            before, own = len(self.bad), list[tuple[int, int, int, int]]()
            for path in expand(source.path):
                own += self._scan(path, source, number, oversize)
            if not own and len(self.bad) == before:
                told = f"the tasks {source.tasks}" + (f" where {source.where}" if source.where else "")
                raise ValueError(f"source '{source.path}': expected samples of {told}, got none")
            rows += _capped(own, source.max_samples)
        table = np.array(rows, dtype=np.int64).reshape(-1, 4)
        self.source_of, self._shards, self._positions, self.lengths = table.T.copy()
        self.num_samples = len(rows) + len(self.bad)

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, number: int) -> Sample:
        """Read a sample, undecoded."""
        return self._reader.read(self._indices[self._shards[number]], int(self._positions[number]))

    def rendered(self, number: int) -> Rendered:
        """Read, decode and render a sample.

        Raises:
            ValueError: If it is bad, naming it.
        """
        if self._cache is not None and number in self._cache:
            return self._cache[number]
        sample = self.sample(number)
        result = render_sample(sample, self.plan)
        if len(result.input_ids) != self.lengths[number]:
            raise ValueError(
                f"record '{sample.key}': expected {self.lengths[number]} tokens from its declared sizes, got "
                f"{len(result.input_ids)}"
            )
        if self._cache is not None:
            self._cache[number] = result
        return result

    def describe(self, number: int, reason: str) -> BadSample:
        """A bad sample's entry for the quarantine."""
        index = self._indices[self._shards[number]]
        return BadSample(index.path, index.entries[self._positions[number]].key, reason)

    def _scan(self, path: str, source: Source, number: int, oversize: Oversize) -> list[tuple[int, int, int, int]]:
        index = ensure_index(path)
        lengths = ensure_lengths(index, self.plan, self._reader)
        self.data_hashes[path] = index.fingerprint
        self._indices.append(index)
        rows = []
        for position, (entry, tokens) in enumerate(zip(index.entries, lengths.tokens, strict=True)):
            if not source.takes(entry.task, entry.meta):
                continue
            reason = lengths.errors.get(position, "")
            if not reason and tokens > self.max_tokens:
                reason = f"record '{entry.key}': expected at most max_tokens={self.max_tokens}, got {tokens} tokens"
                if oversize == "error":
                    raise ValueError(f"{path}: {reason}; raise max_tokens, or set oversize to 'quarantine'")
            if reason:
                self.bad.append(BadSample(path, entry.key, reason))
            else:
                rows.append((number, len(self._indices) - 1, position, tokens))
        return rows


def _capped(rows: list[tuple[int, int, int, int]], most: int | None) -> list[tuple[int, int, int, int]]:
    """At most so many rows: a random choice that is the same in every run, in the order of the shards."""
    if most is None or len(rows) <= most:
        return rows
    chosen = np.sort(np.random.default_rng([len(rows), most]).permutation(len(rows))[:most])
    return [rows[place] for place in chosen.tolist()]


def render_sample(sample: Sample, plan: BatchPlan) -> Rendered:
    """Decode and render a sample for training.

    Raises:
        ValueError: Naming the record.
    """
    record = sample.record
    try:
        media = {name: decode_media(item, sample.members[item.file]) for name, item in record.media.items()}
        targets = {
            name: decode_target(item, sample.members[item.file] if item.file else None)
            for name, item in record.targets.items()
        }
    except ValueError as error:
        raise ValueError(f"record '{sample.key}': {error}") from error
    return render(record, media, plan, targets)


class StepDataset(Dataset[tuple[Step, list[BadSample]]]):
    """Step s of one rank: the packs ``s · packs_per_step + rank, + rank + world_size, ...`` of the schedule.

    Args:
        samples: The samples.
        schedule: Which packs there are.
        packs_per_step: Packs of one optimizer step, over all ranks.
        rank: This process.
        world_size: Number of processes.
    """

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
            packs += build_packs(self.samples, self.schedule.pack(number).samples, bad)
        # A rank without any pack would leave the others waiting in the gradient exchange: take a later one.
        number, skipped = numbers[-1], 0
        while not packs:
            number, skipped = number + self.packs_per_step, skipped + 1
            if skipped > _MAX_SKIPPED:
                raise ValueError(f"step {step}: expected a usable sample, got {_MAX_SKIPPED} packs without one")
            packs += build_packs(self.samples, self.schedule.pack(number).samples, bad)
        choice = self.schedule.pack(first)
        return Step(packs, merge_counts(packs), len(bad), choice.source, choice.probability), bad


class PackDataset(Dataset[tuple[Step, list[BadSample]]]):
    """A fixed list of packs, one per step; for evaluation.

    Args:
        samples: The samples.
        packs: Sample numbers per pack.
    """

    def __init__(self, samples: SampleSet, packs: Sequence[Sequence[int]]) -> None:
        self.samples, self.packs = samples, packs

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> tuple[Step, list[BadSample]]:
        """Build a step of one pack, or of none if all its samples are bad."""
        bad: list[BadSample] = []
        packs = build_packs(self.samples, self.packs[index], bad)
        return Step(packs, merge_counts(packs), len(bad)), bad


def build_packs(samples: SampleSet, numbers: Sequence[int], bad: list[BadSample]) -> list[Batch]:
    """The pack of these samples; bad ones are appended to ``bad``, and no pack is made of nothing."""
    rendered = []
    for number in numbers:
        try:
            rendered.append(samples.rendered(number))
        except ValueError as error:
            bad.append(samples.describe(number, str(error)))
    return [pack(rendered, samples.plan)] if rendered else []


@dataclass
class _Slot:
    offset: int
    shape: torch.Size
    dtype: torch.dtype


class Parcel:
    """A step on its way out of a worker: all its tensors in one buffer, so that one file handle crosses.

    Args:
        step: The step.
        bad: The bad samples found on the way.
    """

    def __init__(self, step: Step, bad: list[BadSample]) -> None:
        pieces: list[Tensor] = []
        self._size = 0

        def stow(tensor: Tensor) -> _Slot:
            flat = tensor.contiguous().reshape(-1).view(torch.uint8)
            slot = _Slot(self._size, tensor.shape, tensor.dtype)
            padding = -len(flat) % _ALIGNMENT
            pieces.extend([flat, flat.new_zeros(padding)])
            self._size += len(flat) + padding
            return slot

        self.step, self.bad = _map(step, Tensor, stow), bad
        self.buffer = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.uint8)

    def pin_memory(self) -> Parcel:
        """Pin the buffer, and with it every tensor of the step."""
        self.buffer = self.buffer.pin_memory()
        return self

    def unpack(self) -> tuple[Step, list[BadSample]]:
        """The step, its tensors views of the buffer."""

        def fetch(slot: _Slot) -> Tensor:
            size = slot.shape.numel() * slot.dtype.itemsize
            return self.buffer[slot.offset : slot.offset + size].view(slot.dtype).reshape(slot.shape)

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
