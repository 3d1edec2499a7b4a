"""Steps from shards that are read front to back: for data that is far away, or too large to be indexed first.

Order: in every epoch each source's shards are shuffled and dealt to the workers of all processes; a worker draws from
its sources by their weights, passes samples through a shuffle buffer, and packs a window of them at a time. All of it
is a function of the seed and of the number of workers and processes, so a run is resumed exactly with the same numbers
and refused with others. What was delivered before is read again, but not decoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from data.mixtures import Mixture, Source
from data.packing import merge_counts, plan_packs
from data.quarantine import BadSample
from data.render import Rendered, RenderedSize, RenderError, rendered_size
from data.shards import Sample, expand, read_samples
from data.stream.samples import render_sample
from data.stream.splitting import OVERSIZE_HINT, Oversize, split_record, too_long_error
from data.stream.steps import pack_good
from data.stream.whereabouts import Whereabouts
from layers.batch import Step
from models.plan import BatchPlan

_WINDOW_STEPS = 8
"""Steps that are packed together; what fills no pack of them waits for the next window."""


@dataclass(frozen=True)
class Streaming:
    """What decides the packs of a stream.

    Args:
        sources: The sources; a weight is a source's share of the samples, since its size is not known.
        plan: The model's plan.
        mixture: Only ``unmixed`` and ``curriculum`` have a meaning here.
        max_tokens: Tokens that a pack may hold.
        max_media_cost: Work of the encoders that a pack may hold.
        packs_per_step: Packs of one optimizer step, over all processes.
        seed: Seed of the order.
        oversize: What becomes of a sample longer than ``max_tokens``.
        shuffle_buffer: Samples among which the next one is drawn, per source and worker; they are kept undecoded.
        pad_to: Length of every pack, filled with padding; None leaves packs as they are.

    Raises:
        ValueError: For a mixture that needs the sizes of its sources.
    """

    sources: Sequence[Source]
    plan: BatchPlan
    mixture: Mixture
    max_tokens: int
    max_media_cost: int | None
    packs_per_step: int
    seed: int
    oversize: Oversize
    shuffle_buffer: int
    pad_to: int | None = None

    def __post_init__(self) -> None:
        mixture = self.mixture
        needs_sizes = {
            "temperature": mixture.temperature != 1,
            "round_samples": mixture.round_samples is not None,
            "epochs": mixture.epochs is not None,
            "tokens": mixture.tokens is not None,
            "max_samples": any(source.max_samples is not None for source in self.sources),
        }
        given = [name for name, used in needs_sizes.items() if used]
        if given:
            raise ValueError(f"streaming: expected a mixture of weights, 'unmixed' and 'curriculum' alone, got {given}")
        titles = [source.title for source in self.sources]
        unknown = {name for stage in mixture.curriculum for name in stage.weights} - set(titles)
        if unknown:
            raise ValueError(f"curriculum: expected sources {titles}, got {sorted(unknown)}")

    def shares(self, step: int) -> np.ndarray:
        """(sources,) probabilities at a step.

        Raises:
            ValueError: If all weights are 0.
        """
        stage = next((item for item in self.mixture.curriculum if step < item.until), None)
        own = {} if stage is None else stage.weights
        weights = np.array([own.get(source.title, source.weight) for source in self.sources], dtype=float)
        if not weights.sum():
            raise ValueError(f"training stream: expected a source with a weight at step {step}, got none")
        return weights / weights.sum()


class _Held(NamedTuple):
    """A sample on its way into a pack, undecoded."""

    shard: str
    sample: Sample
    size: RenderedSize


class _Group(NamedTuple):
    """The packs of one step of one process, as samples."""

    packs: list[list[_Held]]
    source: str | None
    probability: float | None


class StreamingSteps(IterableDataset[tuple[Step, list[BadSample]]]):
    """The steps of one process, without end; each worker builds every so many-th.

    Args:
        stream: What decides the packs.
        rank: This process.
        world_size: Number of processes; they share ``packs_per_step`` evenly.

    Attributes:
        first: The step to begin with.
        whereabouts: Is told which sample a worker is at.

    Raises:
        ValueError: If the processes cannot share the packs of a step.
    """

    whereabouts: Whereabouts | None = None

    def __init__(self, stream: Streaming, rank: int = 0, world_size: int = 1) -> None:
        if stream.packs_per_step % world_size:
            raise ValueError(
                f"packs_per_step: expected a multiple of the {world_size} processes, got {stream.packs_per_step}"
            )
        self.stream, self.rank, self.world_size = stream, rank, world_size
        self.paths = [expand(source.path) for source in stream.sources]
        self.first = 0

    def __iter__(self) -> Iterator[tuple[Step, list[BadSample]]]:
        info = get_worker_info()
        given, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        worker = (given + self.first) % workers  # the loader asks its first worker first
        reader = _Worker(self, self.rank * workers + worker, self.world_size * workers)
        for step in itertools.count(worker, workers):
            group = reader.group(step)
            if step >= self.first:
                yield self._step(step, group, reader.take_bad())

    def _step(self, step: int, group: _Group, bad: list[BadSample]) -> tuple[Step, list[BadSample]]:
        plan = self.stream.plan

        def render(item: _Held) -> Rendered:
            return render_sample(item.sample, plan)

        def describe(item: _Held, reason: str) -> BadSample:
            return BadSample(item.shard, item.sample.key, reason)

        packs = [
            made
            for held in group.packs
            for made in pack_good(held, render, describe, plan, bad, self.stream.pad_to, self.whereabouts)
        ]
        if not packs:
            raise ValueError(f"step {step}: expected a usable sample, got none; the last one: {bad[-1].reason}")
        return Step(packs, merge_counts(packs), len(bad), group.source, group.probability), bad


class _Worker:
    """Reads one worker's part of the shards and packs it, window by window."""

    def __init__(self, steps: StreamingSteps, part: int, parts: int) -> None:
        self.stream, self.paths, self.part, self.parts = steps.stream, steps.paths, part, parts
        self.packs = self.stream.packs_per_step // steps.world_size
        self.bad: list[BadSample] = []
        self._samples = [self._shuffled(number) for number in range(len(self.paths))]
        self._draw = np.random.default_rng([self.stream.seed, part, 3])
        self._lanes: dict[int, list[list[list[_Held]]]] = {}  # by source, and by -1 where all are mixed
        self._waiting: dict[int, list[_Held]] = {}
        self._windows: dict[int, int] = {}

    def group(self, step: int) -> _Group:
        """The packs of a step."""
        shares = self.stream.shares(step)
        if not self.stream.mixture.unmixed:
            return _Group(self._next(-1, shares), None, None)
        # Every worker of every process draws the same source for a step.
        source = int(np.random.default_rng([self.stream.seed, step, 4]).choice(len(shares), p=shares))
        packs = self._next(source, np.eye(len(shares))[source])
        return _Group(packs, self.stream.sources[source].title, float(shares[source]))

    def take_bad(self) -> list[BadSample]:
        """What was found to be bad since the last call."""
        bad, self.bad = self.bad, []
        return bad

    def _next(self, lane: int, shares: np.ndarray) -> list[list[_Held]]:
        ready = self._lanes.setdefault(lane, [])
        while not ready:
            ready += self._window(lane, shares)
        return ready.pop(0)

    def _window(self, lane: int, shares: np.ndarray) -> list[list[list[_Held]]]:
        """Pack so many samples; the emptiest packs' samples wait for the next window."""
        stream, held = self.stream, self._waiting.pop(lane, [])
        wanted = _WINDOW_STEPS * (self.packs + 1) * stream.max_tokens
        tokens = sum(item.size.tokens for item in held)
        while tokens < wanted:
            source = int(self._draw.choice(len(shares), p=shares))
            held.append(next(self._samples[source]))
            tokens += held[-1].size.tokens
        number = self._windows[lane] = self._windows.get(lane, -1) + 1
        lengths, costs = ([getattr(item.size, name) for item in held] for name in ("tokens", "cost"))
        seed = stream.seed * self.parts + self.part
        plan = plan_packs(lengths, stream.max_tokens, seed, number, costs=costs, max_cost=stream.max_media_cost)
        fullest = sorted(range(len(plan.packs)), key=lambda place: -sum(lengths[index] for index in plan.packs[place]))
        count = (len(fullest) - 1) // self.packs * self.packs
        later = set(fullest[count:])
        self._waiting[lane] = [held[index] for place in sorted(later) for index in plan.packs[place]]
        packs = [[held[index] for index in pack] for place, pack in enumerate(plan.packs) if place not in later]
        return [packs[first : first + self.packs] for first in range(0, count, self.packs)]

    def _shuffled(self, source: int) -> Iterator[_Held]:
        draw = np.random.default_rng([self.stream.seed, source, self.part, 5])
        buffer: list[_Held] = []
        for item in self._in_order(source):
            buffer.append(item)
            if len(buffer) >= self.stream.shuffle_buffer:
                place = int(draw.integers(len(buffer)))
                buffer[place], buffer[-1] = buffer[-1], buffer[place]
                yield buffer.pop()

    def _in_order(self, source: int) -> Iterator[_Held]:
        """A source's samples without end: whole shards where every worker has one, else every so many-th sample."""
        paths, settings = self.paths[source], self.stream.sources[source]
        whole = len(paths) >= self.parts
        for epoch in itertools.count():
            order = np.random.default_rng([self.stream.seed, source, epoch, 6]).permutation(len(paths)).tolist()
            own = order[self.part :: self.parts] if whole else order
            found = number = 0
            for path in (paths[place] for place in own):
                for sample in read_samples(path, self._note):
                    if not settings.takes(sample.record.task, sample.record.meta):
                        continue
                    number += 1
                    if whole or number % self.parts == self.part:
                        parts = self._sized(path, sample)
                        found += len(parts)
                        yield from parts
            if not found:
                told = f"; the last one: {self.bad[-1].reason}" if self.bad else ""
                raise ValueError(f"source '{settings.title}': expected usable samples for every worker, got none{told}")

    def _sized(self, path: str, sample: Sample) -> list[_Held]:
        """The sample with its size, or its parts; nothing where it is bad, which is noted.

        Raises:
            ValueError: If it is too long and that is an error.
        """
        stream = self.stream
        try:
            size = rendered_size(sample.record, stream.plan)
            if size.tokens <= stream.max_tokens:
                return [_Held(path, sample, size)]
            if stream.oversize == "split":
                records = split_record(sample.record, stream.plan, stream.max_tokens)
                parts = [Sample(sample.key, record, sample.members) for record in records]
                return [_Held(path, part, rendered_size(part.record, stream.plan)) for part in parts]
        except RenderError as error:
            self._note(path, sample.key, error)
            return []
        too_long = too_long_error(sample.key, size.tokens, stream.max_tokens)
        if stream.oversize == "error":
            raise ValueError(f"{path}: {too_long}; {OVERSIZE_HINT}")
        self._note(path, sample.key, too_long)
        return []

    def _note(self, path: str, key: str, error: ValueError) -> None:
        self.bad.append(BadSample(path, key, str(error).removeprefix(f"{path}: ")))
