"""Mixtures: which samples a training stream reads, how much of each source, in which order over the steps.

The mixture papers are rows of a configuration: a source per task, language, domain or difficulty (``where``), a share
per source (``weight``, ``temperature``, ``max_samples``), a curriculum over steps, and whether a step holds one source
or all of them (``unmixed``, https://arxiv.org/abs/2211.09808).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.packing import plan_packs

Allowed = Any
"""What a field may be: a value, a list of values, or a range of numbers: ``min`` or ``above``, ``max`` or ``below``."""
_RANGE = frozenset(("min", "max", "above", "below"))


@dataclass
class Source:
    """Shards that a run reads.

    Args:
        path: Directory, glob, brace pattern or address of shards, or several.
        weight: How often a round of the stream takes each sample on average: 1 once, 2 twice, 0.5 every second one.
        tasks: Only records of these tasks (the record's own ``task``); None takes all.
        where: Only records whose ``meta`` has these fields: a value, a list of values, or a range of numbers, with
            ``min`` and ``max`` as its ends or between ``above`` and ``below``; one end suffices.
        max_samples: Use no more than so many samples, the same ones in every run.
        name: For curricula and logs; the path by default.
    """

    path: str | list[str]
    weight: float = 1.0
    tasks: list[str] | None = None
    where: dict[str, Any] | None = None
    max_samples: int | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"source '{self.path}' weight: expected 0 or a positive number, got {self.weight}")
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"source '{self.path}' max_samples: expected at least 1, got {self.max_samples}")
        for name, allowed in (self.where or {}).items():
            if isinstance(allowed, Mapping) and not (allowed and set(allowed) <= _RANGE):
                wanted = f"some of {sorted(_RANGE)}"
                raise ValueError(f"source '{self.path}' where '{name}': expected {wanted}, got {sorted(allowed)}")

    @property
    def title(self) -> str:
        """Its name."""
        return self.name or (self.path if isinstance(self.path, str) else " ".join(self.path))

    def takes(self, task: str, meta: Mapping[str, Any]) -> bool:
        """Whether a record of this task and meta belongs to the source."""
        if self.tasks is not None and task and task not in self.tasks:
            return False
        return all(_allowed(meta.get(name), allowed) for name, allowed in (self.where or {}).items())


def _allowed(value: Any, allowed: Allowed) -> bool:
    if isinstance(allowed, Mapping):
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if not numeric or not allowed.get("min", -math.inf) <= value <= allowed.get("max", math.inf):
            return False
        return allowed.get("above", -math.inf) < value < allowed.get("below", math.inf)
    return value in allowed if isinstance(allowed, list) else value == allowed


@dataclass
class CurriculumStage:
    """A stretch of steps with weights of its own.

    Args:
        until: The first step that no longer belongs to it.
        weights: Source name -> weight; sources that are not named keep theirs, 0 leaves one out.
    """

    until: int
    weights: dict[str, float]


@dataclass
class Mixture:
    """How the sources are mixed.

    Args:
        temperature: Sources take part by ``(weight · samples)^(1/T)``: 1 by their size, larger ones more evenly
            (https://arxiv.org/abs/1907.05019).
        unmixed: Every step holds one source only, on all processes; its name and probability come with the step.
        curriculum: Stages in order of ``until``; after the last, the sources' own weights hold.
        round_samples: Samples between two shuffles; by default one weighted pass over everything. A curriculum
            needs rounds that are short beside its stages for its shares to be exact.
        epochs: End after so many times the number of usable samples; None never ends.
        tokens: End after so many tokens; None never ends.
    """

    temperature: float = 1.0
    unmixed: bool = False
    curriculum: list[CurriculumStage] = field(default_factory=list)
    round_samples: int | None = None
    epochs: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature: expected a positive number, got {self.temperature}")
        ends = [stage.until for stage in self.curriculum]
        if ends != sorted(set(ends)) or any(end < 1 for end in ends):
            raise ValueError(f"curriculum: expected rising positive 'until', got {ends}")
        if self.epochs is not None and self.tokens is not None:
            raise ValueError("expected a budget of epochs or of tokens, got both")
        for name in ("round_samples", "epochs", "tokens"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}: expected a positive number, got {value}")


@dataclass(frozen=True)
class Choice:
    """A pack: its samples, and in an unmixed stream the step's source with the probability that it was drawn."""

    samples: list[int]
    source: str | None = None
    probability: float | None = None


@dataclass
class _Round:
    """Where a round begins: its first pack, each source's place in its own passes, and samples left over before."""

    first_pack: int
    places: np.ndarray
    waiting: list[np.ndarray]


class PackSchedule:
    """A sequence of packs; pack i is a pure function of the data, the mixture, the seed and i.

    The stream runs in rounds. A round takes each source's share of samples, continuing through that source's own
    shuffled passes, shuffles them together (or, unmixed, source by source) and packs them.

    Args:
        source_of: (N,) source of each sample.
        lengths: (N,) tokens of each sample.
        sources: The sources.
        max_tokens: Tokens that a pack may hold.
        seed: Seed of the run.
        mixture: How they are mixed.
        packs_per_step: Packs of one optimizer step, over all processes.
        costs: (N,) the encoders' work on each sample, to balance it between packs; None packs by tokens alone.
        max_cost: Work that a pack may hold.

    Raises:
        ValueError: If there is no usable sample, or the curriculum names an unknown source.
    """

    def __init__(
        self,
        source_of: np.ndarray,
        lengths: np.ndarray,
        sources: Sequence[Source],
        max_tokens: int,
        seed: int,
        mixture: Mixture | None = None,
        packs_per_step: int = 1,
        costs: np.ndarray | None = None,
        max_cost: int | None = None,
    ) -> None:
        self.mixture = mixture or Mixture()
        self.costs, self.max_cost = costs, max_cost
        self.titles = [source.title for source in sources]
        self.members = [np.flatnonzero(source_of == number) for number in range(len(sources))]
        self.base_weights = [source.weight for source in sources]
        self.lengths, self.max_tokens, self.seed, self.packs_per_step = lengths, max_tokens, seed, packs_per_step
        for stage in self.mixture.curriculum:
            unknown = sorted(set(stage.weights) - set(self.titles))
            if unknown:
                raise ValueError(f"curriculum: expected sources {self.titles}, got {unknown}")
        for step in (0, *(stage.until for stage in self.mixture.curriculum)):
            if not sum(self.amounts(step)):
                raise ValueError(f"training stream: expected a usable sample at step {step}, got none")
        nothing = [np.empty(0, dtype=np.int64)] * len(sources)
        self._rounds = [_Round(0, np.zeros(len(sources)), nothing)]
        self._first_round = 0
        self._num_steps: int | None = None
        self._packs: dict[int, list[Choice]] = {}  # the last few rounds

    def pack(self, number: int) -> Choice:
        """The pack of this number.

        Raises:
            ValueError: If it lies before the position that was sought.
        """
        if number < self._rounds[0].first_pack:
            raise ValueError(f"pack {number}: expected one from {self._rounds[0].first_pack} on, where the run goes on")
        while self._rounds[-1].first_pack <= number:
            self._choices(len(self._rounds) - 1)
        index = bisect_right(self._rounds, number, key=lambda item: item.first_pack) - 1
        return self._choices(index)[number - self._rounds[index].first_pack]

    def position(self, number: int) -> dict[str, Any]:
        """Where the round of this pack begins, so that another schedule can go on from there without the rounds before.

        JSON-serialisable: which round, its first pack, each source's place in its own passes, and the samples that
        rounds before left over.
        """
        self.pack(number)
        index = bisect_right(self._rounds, number, key=lambda item: item.first_pack) - 1
        start = self._rounds[index]
        waiting = [held.tolist() for held in start.waiting]
        return {
            "round": self._first_round + index,
            "first_pack": start.first_pack,
            "places": start.places.tolist(),
            "waiting": waiting,
            "num_steps": self.num_steps(),
        }

    def seek(self, position: Mapping[str, Any]) -> None:
        """Go on from a :meth:`position`; packs before its round are then out of reach."""
        waiting = [np.array(held, dtype=np.int64) for held in position["waiting"]]
        self._first_round = position["round"]
        self._rounds = [_Round(position["first_pack"], np.array(position["places"], dtype=float), waiting)]
        self._packs, self._num_steps = {}, position["num_steps"]

    def num_steps(self) -> int | None:
        """Whole steps within the mixture's budget; None without one."""
        if self._num_steps is None:
            self._num_steps = self._count_steps()
        return self._num_steps

    def _count_steps(self) -> int | None:
        mixture = self.mixture
        if mixture.epochs is None and mixture.tokens is None:
            return None
        usable = sum(len(members) for members in self.members)
        left = float(mixture.tokens if mixture.tokens is not None else math.ceil((mixture.epochs or 0) * usable))
        number = 0
        while left > 0:
            samples = self.pack(number).samples
            left -= int(self.lengths[samples].sum()) if mixture.tokens is not None else len(samples)
            number += 1
        return max(1, number // self.packs_per_step)

    def amounts(self, step: int) -> np.ndarray:
        """(sources,) samples that a round beginning at this step takes."""
        stage = next((item for item in self.mixture.curriculum if step < item.until), None)
        weights = np.array(
            [
                stage.weights.get(title, weight) if stage else weight
                for title, weight in zip(self.titles, self.base_weights, strict=True)
            ]
        )
        amounts = weights * np.array([len(members) for members in self.members])
        total = amounts.sum()
        if self.mixture.temperature != 1 and total:
            flattened = np.where(amounts > 0, amounts ** (1 / self.mixture.temperature), 0.0)
            amounts = flattened * total / flattened.sum()
        if self.mixture.round_samples is not None and total:
            amounts = amounts * self.mixture.round_samples / total
        return amounts

    def _choices(self, index: int) -> list[Choice]:
        if index in self._packs:
            return self._packs[index]
        start = self._rounds[index]
        step = start.first_pack // self.packs_per_step
        amounts = self.amounts(step)
        shares = [
            np.concatenate([start.waiting[source], self._share(source, start.places[source], amount)])
            if amount
            else start.waiting[source][:0]
            for source, amount in enumerate(amounts.tolist())
        ]
        waiting = [held if not amount else held[:0] for held, amount in zip(start.waiting, amounts, strict=True)]
        number = self._first_round + index
        choices = self._unmixed(shares, number) if self.mixture.unmixed else self._mixed(shares, number)
        kept = choices[: self._room(start.first_pack, len(choices))]
        if self.mixture.unmixed or len(kept) < len(choices):
            given = np.array([sample for choice in kept for sample in choice.samples], dtype=np.int64)
            left = [_without(share, given) for share in shares]
            waiting = [np.concatenate(pair) for pair in zip(waiting, left, strict=True)]
        if len(self._rounds) == index + 1:
            self._rounds.append(_Round(start.first_pack + len(kept), start.places + amounts, waiting))
        if len(self._packs) >= 3:
            del self._packs[min(self._packs)]
        self._packs[index] = kept
        return kept

    def _room(self, first: int, count: int) -> int:
        """How many of a round's packs lie before the next stage of the curriculum."""
        ends = [stage.until * self.packs_per_step - first for stage in self.mixture.curriculum]
        return min([count, *(end for end in ends if end > 0)])

    def _mixed(self, shares: Sequence[np.ndarray], index: int) -> list[Choice]:
        return [Choice(pack) for pack in self._packed(np.concatenate(shares), index)]

    def _unmixed(self, shares: Sequence[np.ndarray], index: int) -> list[Choice]:
        """Whole steps of one source each, in random order; what fills no step waits for the next round."""
        steps: list[tuple[int, list[list[int]]]] = []
        for source, samples in enumerate(shares):
            packs, size = self._packed(samples, index), self.packs_per_step
            steps += [(source, packs[at : at + size]) for at in range(0, len(packs) - size + 1, size)]
        counts = np.bincount(np.array([source for source, _ in steps], dtype=np.int64), minlength=len(shares))
        order = np.random.default_rng([self.seed, index, 2]).permutation(len(steps)).tolist()
        return [
            Choice(pack, self.titles[source], float(counts[source] / len(steps)))
            for source, packs in (steps[place] for place in order)
            for pack in packs
        ]

    def _packed(self, samples: np.ndarray, index: int) -> list[list[int]]:
        costs = None if self.costs is None else self.costs[samples]
        plan = plan_packs(
            self.lengths[samples],
            self.max_tokens,
            self.seed,
            index,
            costs=costs,
            max_cost=self.max_cost,
        )
        return [samples[pack].tolist() for pack in plan.packs]

    def _share(self, source: int, place: float, amount: float) -> np.ndarray:
        members = self.members[source]
        places = np.arange(_whole(place), _whole(place + amount))
        passes = places // max(len(members), 1)
        parts = [np.empty(0, dtype=np.int64)]
        for number in np.unique(passes).tolist():
            shuffled = np.random.default_rng([self.seed, source, number, 1]).permutation(members)
            parts.append(shuffled[places[passes == number] % len(members)])
        return np.concatenate(parts)


def _whole(place: float) -> int:
    return math.floor(place + 1e-6)  # sums of shares such as 0.7 fall a rounding error short of whole numbers


def _without(samples: np.ndarray, given: np.ndarray) -> np.ndarray:
    """The samples that were not given, each as often as it is left, in order."""
    numbers, counts = np.unique(given, return_counts=True)
    order = np.argsort(samples, kind="stable")
    ordered = samples[order]
    occurrence = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    place = np.minimum(np.searchsorted(numbers, ordered), max(len(numbers) - 1, 0))
    used = np.where(numbers[place] == ordered, counts[place], 0) if len(numbers) else np.zeros(len(ordered), dtype=int)
    return samples[np.sort(order[occurrence >= used])]
