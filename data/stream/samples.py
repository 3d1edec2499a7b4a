"""The samples of a run, numbered through, with everything that packing needs to know and nothing decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.index import ShardIndex, ShardReader, ensure_index, ensure_lengths
from data.media import decode_media, decode_target
from data.mixtures import Source
from data.quarantine import BadSample
from data.render import Rendered, RenderedSize, RenderError, render, rendered_size
from data.shards import Sample, ShardError, expand
from data.stream.splitting import OVERSIZE_HINT, Oversize, split_record, too_long_error
from models.plan import BatchPlan


class _Row(NamedTuple):
    """A usable sample: where it lies, and its size. ``part`` is that of a dialogue that had to be split, else -1."""

    source: int
    shard: int
    position: int
    part: int
    tokens: int
    cost: int


class SampleSet:
    """The samples of several sources under one plan, numbered through; reads and renders any of them.

    Args:
        sources: The sources.
        plan: The model's plan.
        max_tokens: Tokens that a pack may hold.
        oversize: A sample longer than that is an error, or split between its turns, or quarantined.
        cache: Keep rendered samples in memory (each worker its own).
        pad_to: Length of every pack, filled with one trailing segment of padding; None leaves packs as they are.

    Attributes:
        source_of: (N,) source of each usable sample.
        lengths: (N,) its rendered length.
        costs: (N,) what the encoders' work on it costs, in tokens.
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
        pad_to: int | None = None,
        key: str = "sources",
    ) -> None:
        self.plan, self.max_tokens, self.oversize, self.pad_to = plan, max_tokens, oversize, pad_to
        self.bad: list[BadSample] = []
        self.data_hashes: dict[str, str] = {}
        self._reader = ShardReader()
        self._indices: list[ShardIndex] = []
        self._cache: dict[int, Rendered] | None = {} if cache else None
        rows: list[_Row] = []
        for number, source in enumerate(sources):
            before, own = len(self.bad), list[_Row]()
            for path in shards_of(source, f"{key}[{number}]"):
                own += self._scan(path, source, number)
            if not own and len(self.bad) == before:
                told = f"the tasks {source.tasks}" + (f" where {source.where}" if source.where else "")
                raise ValueError(f"{key}[{number}] '{source.title}': expected samples of {told}, got none")
            rows += _capped(own, source.max_samples)
        table = np.array(rows, dtype=np.int64).reshape(-1, len(_Row._fields))
        self.source_of, self._shards, self._positions, self._parts, self.lengths, self.costs = table.T.copy()
        self.num_samples = len(rows) + len(self.bad)

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, number: int) -> Sample:
        """Read a sample, undecoded; of a dialogue that had to be split, its part."""
        sample = self._reader.read(self._indices[self._shards[number]], int(self._positions[number]))
        part = int(self._parts[number])
        if part < 0:
            return sample
        record = split_record(sample.record, self.plan, self.max_tokens)[part]
        return Sample(sample.key, record, sample.members)

    def rendered(self, number: int) -> Rendered:
        """Read, decode and render a sample.

        Raises:
            ValueError: If it is bad, naming it.
        """
        if self._cache is not None and number in self._cache:
            return self._cache[number]
        sample = self.sample(number)
        result = render_sample(sample, self.plan)
        if result.num_tokens != self.lengths[number]:
            raise ValueError(
                f"record '{sample.key}': expected {self.lengths[number]} tokens from its declared sizes, got "
                f"{result.num_tokens}"
            )
        if self._cache is not None:
            self._cache[number] = result
        return result

    def describe(self, number: int, reason: str) -> BadSample:
        """A bad sample's entry for the quarantine."""
        index = self._indices[self._shards[number]]
        return BadSample(index.path, index.key(int(self._positions[number])), reason)

    def _scan(self, path: str, source: Source, number: int) -> list[_Row]:
        index = ensure_index(path)
        lengths = ensure_lengths(index, self.plan, self._reader)
        self.data_hashes[path] = index.fingerprint
        self._indices.append(index.compact())
        self.bad += [BadSample(path, key, reason) for key, reason in index.problems]
        shard, rows = len(self._indices) - 1, list[_Row]()
        for position, entry in enumerate(index.entries):
            if not source.takes(entry.task, entry.meta):
                continue
            tokens, cost = lengths.tokens[position], lengths.costs[position]
            try:
                if tokens > self.max_tokens:
                    parts = self._too_long(index, position, tokens)
                    rows += [_Row(number, shard, position, part, *size) for part, size in enumerate(parts)]
                elif position in lengths.errors:
                    self.bad.append(BadSample(path, entry.key, lengths.errors[position]))
                else:
                    rows.append(_Row(number, shard, position, -1, tokens, cost))
            except RenderError as error:
                if self.oversize == "error":
                    raise ValueError(f"{path}: {error}; {OVERSIZE_HINT}") from None
                self.bad.append(BadSample(path, entry.key, str(error)))
        return rows

    def _too_long(self, index: ShardIndex, position: int, tokens: int) -> list[RenderedSize]:
        """The size of each part of a sample that fits into no pack.

        Raises:
            RenderError: If it is not to be split, or cannot be.
        """
        if self.oversize != "split":
            raise too_long_error(index.entries[position].key, tokens, self.max_tokens)
        record = self._reader.read(index, position).record
        return [rendered_size(part, self.plan) for part in split_record(record, self.plan, self.max_tokens)]


def shards_of(source: Source, key: str) -> list[str]:
    """The shards of a source.

    Raises:
        ShardError: If there are none, naming the source's key in the configuration.
    """
    try:
        return expand(source.path)
    except ShardError as error:
        raise ShardError(f"{key}: {error}") from None


def _capped(rows: list[_Row], most: int | None) -> list[_Row]:
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
