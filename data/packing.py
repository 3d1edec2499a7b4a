"""Packing: rendered samples become segments of one row, and a plan says which samples share a pack."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from data.render import IGNORED, Rendered
from layers.batch import PADDING, Batch, HeadCall, MediaBatch
from layers.head import num_terms
from layers.layout import Layout
from models.plan import BatchPlan
from routers.router import ROUTER_LOSS

TOKEN_LOSS = "token"
_FILL = 0.99  # share of a pack's room that its samples should come to


@dataclass(frozen=True)
class PackPlan:
    """Which samples share a pack.

    Args:
        packs: Indices into the lengths, per pack.
        oversize: Indices of samples that fit into no pack.
    """

    packs: list[list[int]]
    oversize: list[int]


def pack(samples: Sequence[Rendered], plan: BatchPlan, pad_to: int | None = None) -> Batch:
    """Join samples to one pack; attention will not cross from one to the other, nor to a sample's companions.

    Args:
        samples: At least one, none of them empty; companions come behind their sample.
        plan: The model's plan.
        pad_to: Length T to fill with one trailing segment of padding (no labels), for static shapes.

    Returns:
        The pack. ``counts["token"]`` is the number of labels that the loss uses: a label at the first position of
        a segment has nothing that could predict it. ``counts[HEAD]`` is that of the terms that its targets bring, and
        ``counts["router"]``, where a router learns, that of the labels outside of calls.

    Raises:
        ValueError: If there is no sample, one is empty, or they are longer than ``pad_to``.
    """
    samples = [segment for sample in samples for segment in sample.segments]
    if not samples or any(not sample.input_ids for sample in samples):
        lengths = [len(sample.input_ids) for sample in samples]
        raise ValueError(f"pack: expected samples of at least one token, got lengths {lengths}")
    input_ids, labels = list[int](), list[int]()
    segments = [len(sample.input_ids) for sample in samples]
    media = _pack_media(samples, plan)
    calls, counts = _pack_calls(samples)
    counts[TOKEN_LOSS] = 0
    for sample, length in zip(samples, segments, strict=True):
        input_ids += sample.input_ids
        labels += sample.labels
        counts[TOKEN_LOSS] += length - 1 - sample.labels[1:].count(IGNORED)
    if plan.with_routing:
        counts[ROUTER_LOSS] = counts[TOKEN_LOSS] - sum(_num_labels_within(sample) for sample in samples)
    keys = [sample.key for sample in samples]
    instructions = [torch.tensor(sample.instruction) for sample in samples] if plan.with_instructions else []
    padding = 0 if pad_to is None else pad_to - len(input_ids)
    if padding < 0:
        raise ValueError(f"pack: expected at most {pad_to} tokens, got {len(input_ids)} of {keys}")
    if padding:
        tokenizer = plan.tokenizer
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        input_ids += [pad_id] * padding
        labels += [IGNORED] * padding
        segments, keys = [*segments, padding], [*keys, PADDING]
        instructions += instructions[:1]  # as many as segments; nothing is learned from padding
    return Batch(
        input_ids=_numbers(input_ids)[None],
        labels=_numbers(labels)[None],
        position_ids=torch.from_numpy(np.concatenate([np.arange(length) for length in segments]))[None],
        segment_lengths=segments,
        media=media,
        calls=calls,
        keys=keys,
        counts=counts,
        instructions=instructions,
    )


def _numbers(values: list[int]) -> Tensor:
    """(N,) int64; half as long as by way of torch."""
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _num_labels_within(sample: Rendered) -> int:
    """Labels within calls, but for the tokens that open them."""
    spans = [call.call.token_span for call in sample.calls]
    return sum(label != IGNORED for start, end in spans for label in sample.labels[start + 1 : end])


def _pack_media(samples: Sequence[Rendered], plan: BatchPlan) -> dict[str, MediaBatch]:
    kinds = sorted({item.kind for sample in samples for item in sample.media})
    media = {}
    for kind in kinds:
        items, segments, positions, offset = [], [], list[int](), 0
        for segment, sample in enumerate(samples):
            for item in sample.media:
                if item.kind == kind:
                    items.append(item)
                    segments.append(segment)
                    positions += (offset + position for position in item.positions)
            offset += len(sample.input_ids)
        media[kind] = MediaBatch(
            items=[item.inputs for item in items],
            layout=Layout([item.layout for item in items]),
            token_lengths=[len(item.positions) for item in items],
            segments=_numbers(segments),
            positions=_numbers(positions),
            originals=[item.original for item in items if item.original is not None],
        )
    return media


def _pack_calls(samples: Sequence[Rendered]) -> tuple[dict[str, list[HeadCall]], dict[str, int]]:
    calls: dict[str, list[HeadCall]] = {}
    counts: dict[str, int] = {}
    seen: dict[str, int] = {}
    offset = 0
    for segment, sample in enumerate(samples):
        references = []
        for item in sample.media:
            references.append((item.kind, seen.get(item.kind, 0)))
            seen[item.kind] = seen.get(item.kind, 0) + 1
        for call in sample.calls:
            own = [references[index] for index in call.media]
            moved = HeadCall(call.call.shifted(offset), segment, own, call.target, call.earlier_results)
            calls.setdefault(call.head, []).append(moved)
            counts[call.head] = counts.get(call.head, 0) + num_terms(call.target)
        offset += len(sample.input_ids)
    return calls, {head: count for head, count in counts.items() if count}


def plan_packs(
    lengths: Sequence[int] | np.ndarray,
    max_tokens: int,
    seed: int,
    epoch: int,
    *,
    costs: Sequence[int] | np.ndarray | None = None,
    max_cost: int | None = None,
    window: int = 1024,
    oversize: Literal["error", "quarantine"] = "error",
    shuffle: bool = True,
) -> PackPlan:
    """Decide which samples share a pack; a pure function of its arguments.

    The samples are shuffled per (seed, epoch) and each goes, in that order, into the fullest pack that still takes it
    (best fit). Taking the longest first would waste a little less, but fill each pack with samples of one length, and
    so often of one task: an optimizer step would see one task at a time. After every window the fullest packs are
    closed; the others stay open, so that only the last ones of an epoch stay short.

    With ``costs``, the samples of a window that make the encoders work come first, the costliest at the head, each into
    the pack with the least work (longest processing time first, https://doi.org/10.1137/0117039); the others fill up
    what is left. Packs then cost the encoders about the same, and no process waits for one that drew all the images.

    Args:
        lengths: Tokens per sample.
        max_tokens: Tokens that a pack may hold.
        seed: Seed of the run.
        epoch: Counts passes over the data.
        costs: The encoders' work per sample, to balance it; None packs by tokens alone.
        max_cost: Work that a pack may hold; a sample with more shares its pack with text alone.
        window: Samples per window.
        oversize: What to do with a sample longer than ``max_tokens``.
        shuffle: Without it, samples and packs keep their order as far as packing allows.

    Returns:
        Every sample in exactly one pack, or in ``oversize``.

    Raises:
        ValueError: If a sample is too long and ``oversize`` is "error".
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if (sizes <= 0).any():
        raise ValueError(f"plan_packs: expected positive lengths, got {int(sizes.min())}")
    too_long = np.flatnonzero(sizes > max_tokens)
    if len(too_long) and oversize == "error":
        raise ValueError(
            f"{len(too_long)} sample(s) do not fit: expected at most max_tokens={max_tokens}, "
            f"got {int(sizes[too_long[0]])} tokens in sample {int(too_long[0])}"
        )
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(sizes)) if shuffle else np.arange(len(sizes))
    order = order[sizes[order] <= max_tokens]
    work = np.zeros_like(sizes) if costs is None else np.asarray(costs, dtype=np.int64)
    bins: _Bins | _BalancedBins = _Bins(max_tokens)
    if work[order].any():
        bins = _BalancedBins(max_tokens, max_cost)
    for start in range(0, len(order), window):
        part = order[start : start + window]
        bins.fill(part, sizes[part], work[part])
        bins.close_full(keep=window // 8)
    packs = bins.finish()
    if shuffle:
        packs = [packs[index] for index in generator.permutation(len(packs)).tolist()]
    return PackPlan(packs, too_long.tolist())


class _Bins:
    """Packs with room for tokens: open ones sorted by room, closed ones in the order of closing."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.open: list[tuple[int, int]] = []  # (room, id)
        self.contents: list[list[int]] = []
        self.closed: list[int] = []

    def fill(self, indices: np.ndarray, sizes: np.ndarray, _: np.ndarray) -> None:
        """Put each sample into the fullest pack that takes it."""
        for index, size in zip(indices.tolist(), sizes.tolist(), strict=True):
            place = bisect_left(self.open, (size, -1))
            if place == len(self.open):
                room, pack_id = self.capacity, len(self.contents)
                self.contents.append([])
            else:
                room, pack_id = self.open.pop(place)
            self.contents[pack_id].append(index)
            if room == size:
                self.closed.append(pack_id)
            else:
                insort(self.open, (room - size, pack_id))

    def close_full(self, keep: int) -> None:
        """Close the fullest packs; the ``keep`` emptiest wait for the next window."""
        surplus = max(len(self.open) - keep, 0)
        self.closed += [pack_id for _, pack_id in self.open[:surplus]]
        del self.open[:surplus]

    def finish(self) -> list[list[int]]:
        self.closed += [pack_id for _, pack_id in self.open]
        self.open = []
        return [self.contents[pack_id] for pack_id in sorted(self.closed)]


class _BalancedBins:
    """Packs with room for tokens and for the encoders' work."""

    def __init__(self, capacity: int, max_work: int | None) -> None:
        self.capacity, self.max_work = capacity, max_work
        self.contents: list[list[int]] = []
        self.closed: list[int] = []
        self.open: list[int] = []  # ids, with the tokens and the work of each
        self.tokens: list[int] = []
        self.work: list[int] = []

    def fill(self, indices: np.ndarray, sizes: np.ndarray, work: np.ndarray) -> None:
        """Spread the work over as many packs as the samples need, then fill these up."""
        room = len(self.open) * self.capacity - sum(self.tokens)
        self._open(max(0, math.ceil((int(sizes.sum()) - room) / (self.capacity * _FILL))))
        order = np.argsort(-work, kind="stable")
        samples = list(zip(indices[order].tolist(), sizes[order].tolist(), work[order].tolist(), strict=True))
        num_working = int((work > 0).sum())
        self._spread(samples[:num_working])
        self._fill_up(samples[num_working:])

    def _spread(self, samples: Sequence[tuple[int, int, int]]) -> None:
        """Each into the pack with the least work that takes it."""
        smallest = min((size for _, size, _ in samples), default=0)
        heap = [(work, place) for place, work in enumerate(self.work)]
        heapify(heap)
        for index, size, work in samples:
            passed = []
            chosen = None
            while heap and chosen is None:
                place = heap[0][1]
                if self.tokens[place] + size > self.capacity:
                    entry = heappop(heap)
                    if self.tokens[place] + smallest <= self.capacity:  # it may take a later one
                        passed.append(entry)
                elif self._may_work(place, work):
                    chosen = heappop(heap)[1]
                elif self.work[place]:
                    break  # the others work more
                else:
                    passed.append(heappop(heap))
            if chosen is None:
                chosen = len(self.open)
                self._open(1)
            self._add(chosen, index, size, work)
            for entry in (*passed, (self.work[chosen], chosen)):
                heappush(heap, entry)

    def _fill_up(self, samples: Sequence[tuple[int, int, int]]) -> None:
        """Each into the fullest pack that takes it."""
        rooms = sorted((self.capacity - tokens, place) for place, tokens in enumerate(self.tokens))
        for index, size, work in samples:
            found = bisect_left(rooms, (size, -1))
            if found < len(rooms):
                room, place = rooms.pop(found)
            else:
                room, place = self.capacity, len(self.open)
                self._open(1)
            self._add(place, index, size, work)
            insort(rooms, (room - size, place))

    def close_full(self, keep: int) -> None:
        """Close the fullest packs; the ``keep`` emptiest wait for the next window."""
        surplus = max(len(self.open) - keep, 0)
        self._close(sorted(range(len(self.open)), key=lambda place: -self.tokens[place])[:surplus])

    def finish(self) -> list[list[int]]:
        self._close(range(len(self.open)))
        return [self.contents[pack_id] for pack_id in sorted(self.closed) if self.contents[pack_id]]

    def _may_work(self, place: int, work: int) -> bool:
        return self.max_work is None or self.work[place] + work <= self.max_work or not self.tokens[place]

    def _add(self, place: int, index: int, size: int, work: int) -> None:
        self.tokens[place] += size
        self.work[place] += work
        self.contents[self.open[place]].append(index)

    def _open(self, count: int) -> None:
        self.open += range(len(self.contents), len(self.contents) + count)
        self.tokens += [0] * count
        self.work += [0] * count
        self.contents += [[] for _ in range(count)]

    def _close(self, places: Sequence[int]) -> None:
        self.closed += (self.open[place] for place in places)
        left = set(range(len(self.open))).difference(places)
        for values in (self.open, self.tokens, self.work):
            values[:] = [value for place, value in enumerate(values) if place in left]


def merge_counts(packs: Sequence[Batch]) -> dict[str, int]:
    """The loss counts of several packs together."""
    total: dict[str, int] = {}
    for batch in packs:
        for name, count in batch.counts.items():
            total[name] = total.get(name, 0) + count
    return total
