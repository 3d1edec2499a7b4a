"""Differences between two runs over the same samples, with confidence intervals."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from eval.metrics.statistics import NUM_RESAMPLES, Contributions, mean

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """A number of the second run minus that of the first, over the samples that both have.

    Args:
        first: The number of the first run on those samples.
        second: That of the second.
        low: Lower end of the confidence interval of the difference, or None with fewer than two independent samples.
        high: Upper end.
        p: Two-sided p-value of no difference, or None.
        n: Samples that both have.
        missing_first: Samples that only the second has.
        missing_second: Samples that only the first has.
        rose: Samples whose contribution is larger in the second run; None where single samples have no number.
        fell: Samples whose contribution is smaller.
        method: How interval and p-value were found.
    """

    first: float
    second: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    missing_first: int
    missing_second: int
    rose: int | None
    fell: int | None
    method: str

    @property
    def value(self) -> float:
        """The difference."""
        return self.second - self.first


def paired_difference(first: Contributions, second: Contributions, level: float = LEVEL, seed: int = 0) -> Difference:
    """Compare two runs sample by sample.

    A mean is compared by the mean of the samples' differences with its clustered standard error and a normal interval
    (https://arxiv.org/abs/2411.00640, section 4); any other number by resampling clusters, the same ones in both runs,
    and the quantiles of the difference.

    Args:
        first: What each sample contributes to the number in the first run.
        second: In the second.
        level: Of the interval.
        seed: Of the resampling.

    Raises:
        ValueError: If the runs share no sample, or their numbers are reduced in different ways.
    """
    places = {key: place for place, key in enumerate(second.keys)}
    mine = np.array([place for place, key in enumerate(first.keys) if key in places], dtype=np.int64)
    theirs = np.array([places[first.keys[place]] for place in mine], dtype=np.int64)
    if not len(mine):
        raise ValueError("expected runs that share samples, got none")
    if (first.reduce is None) != (second.reduce is None):
        raise ValueError("expected two means, or two numbers of the same other kind, got one of each")
    clusters = [first.clusters[place] for place in mine.tolist()]
    before, after = first.columns[mine], second.columns[theirs]
    missing = (len(second.keys) - len(mine), len(first.keys) - len(mine))
    if first.reduce is None or second.reduce is None:
        return _of_means(before[:, 0], after[:, 0], clusters, missing, level)

    def numbers(chosen: NDArray[np.int64]) -> tuple[float, float]:
        assert first.reduce is not None and second.reduce is not None
        return first.reduce(before[chosen]), second.reduce(after[chosen])

    whole = numbers(np.arange(len(mine)))
    drawn = _resampled(numbers, clusters, seed)
    method = f"{NUM_RESAMPLES} resamples of clusters, the same in both runs"
    if len(drawn) < 2:
        return Difference(*whole, None, None, None, len(mine), *missing, None, None, method)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]).tolist()
    below, above = float((drawn <= 0).mean()), float((drawn >= 0).mean())
    p = max(min(1.0, 2 * min(below, above)), 1 / NUM_RESAMPLES)
    return Difference(*whole, low, high, p, len(mine), *missing, None, None, method)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values adjusted for their number (Holm 1979), in the order given; None stays None."""
    order = sorted((value, place) for place, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (value, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * value))
        adjusted[place] = largest
    return adjusted


def _of_means(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    clusters: Sequence[Hashable],
    missing: tuple[int, int],
    level: float,
) -> Difference:
    changes = after - before
    estimate = mean(changes.tolist(), clusters)
    counts = (int((changes > 0).sum()), int((changes < 0).sum()))
    whole = (float(before.mean()), float(after.mean()))
    method = "mean of the samples' differences, standard error clustered, normal interval"
    if estimate.stderr is None:
        return Difference(*whole, None, None, None, len(changes), *missing, *counts, method)
    normal = NormalDist()
    reach = normal.inv_cdf((1 + level) / 2) * estimate.stderr
    if estimate.stderr > 0:
        p = 2 * normal.cdf(-abs(estimate.value) / estimate.stderr)
    else:
        p = 1.0 if estimate.value == 0 else 0.0
    low, high = estimate.value - reach, estimate.value + reach
    return Difference(*whole, low, high, p, len(changes), *missing, *counts, method)


def _resampled(numbers, clusters: Sequence[Hashable], seed: int) -> NDArray[np.float64]:  # type: ignore[no-untyped-def]
    names: dict[Hashable, list[int]] = {}
    for place, name in enumerate(clusters):
        names.setdefault(name, []).append(place)
    if len(names) < 2:
        return np.empty(0)
    members = [np.array(own, dtype=np.int64) for own in names.values()]
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(NUM_RESAMPLES):
        picked = generator.integers(len(members), size=len(members))
        one, two = numbers(np.concatenate([members[name] for name in picked]))
        if np.isfinite(one) and np.isfinite(two):
            drawn.append(two - one)
    return np.array(drawn)
