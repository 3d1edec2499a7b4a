"""Means, areas and rates with standard errors: clustered where samples share a source, bootstrapped elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A measured number.

    Args:
        value: The number.
        n: How many samples it rests on.
        stderr: Its standard error, or None where one cannot be given (fewer than two independent samples).
    """

    value: float
    n: int
    stderr: float | None = None

    def to_json(self) -> dict[str, Any]:
        """``{"value", "n", "stderr"}``."""
        return {"value": self.value, "n": self.n, "stderr": self.stderr}


@dataclass(frozen=True)
class Contributions:
    """What each sample contributes to a number: enough to compute it anew on any selection of the samples.

    Args:
        keys: The samples' keys.
        clusters: What each belongs to; samples of one cluster are not independent.
        columns: (n, k) one row of numbers per sample.
        reduce: From (m, k) rows to the number; None for the mean of the first column.
    """

    keys: Sequence[str]
    clusters: Sequence[Hashable]
    columns: NDArray[np.float64]
    reduce: Callable[[NDArray[np.float64]], float] | None = None


@dataclass(frozen=True)
class Score(Estimate):
    """A metric of a benchmark.

    Args:
        value: The number; NaN where ``na`` says why there is none.
        n: How many samples it rests on.
        stderr: Its standard error, or None.
        protocol: How it was measured, in words that suffice to repeat it.
        parts: The same metric on parts of the samples, or the quantities it is made of.
        higher_is_better: Whether more is better.
        corpus: Whether the number belongs to the corpus as a whole, such as CIDEr, whose weights come from all
            references, so that it means nothing on the first samples alone.
        na: Why there is no value, such as "no judge"; "" where there is one.
        contributions: What lets two runs be paired sample by sample, or None.
    """

    protocol: str = ""
    parts: dict[str, Estimate] = field(default_factory=dict)
    higher_is_better: bool = True
    corpus: bool = False
    na: str = ""
    contributions: Contributions | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The estimate with its protocol and parts."""
        parts = {name: part.to_json() for name, part in sorted(self.parts.items())}
        values = {**super().to_json(), "protocol": self.protocol, "parts": parts}
        values["higher_is_better"] = self.higher_is_better
        return {**values, "value": None, "na": self.na} if self.na else values


def mean(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """A mean and its standard error.

    With clusters: ``SE^2 = C / (C - 1) / n^2 * sum_c (sum_{i in c} (x_i - mean))^2``, which is the usual
    ``s / sqrt(n)`` when every cluster holds one sample (https://arxiv.org/abs/2411.00640).

    Args:
        values: One number per sample.
        clusters: What each sample belongs to; samples of one cluster are not independent.

    Raises:
        ValueError: If there are no values.
    """
    if not len(values):
        raise ValueError("expected at least one value to take the mean of, got none")
    numbers = np.asarray(values, dtype=np.float64)
    value = float(numbers.mean())
    names, inverse = _number(clusters if clusters is not None else range(len(numbers)))
    if names < 2:
        return Estimate(value, len(numbers))
    sums = np.bincount(inverse, numbers - value, minlength=names)
    variance = names / (names - 1) * float((sums**2).sum()) / len(numbers) ** 2
    return Estimate(value, len(numbers), float(np.sqrt(variance)))


def macro_mean(parts: Sequence[Estimate]) -> Estimate:
    """The unweighted mean of independent parts, its n being the sum of theirs.

    Raises:
        ValueError: If there are no parts.
    """
    if not parts:
        raise ValueError("expected at least one part, got none")
    errors = [part.stderr for part in parts]
    stderr = None
    if all(error is not None for error in errors):
        stderr = float(np.sqrt(sum(error**2 for error in errors if error is not None)) / len(parts))
    return Estimate(float(np.mean([part.value for part in parts])), sum(part.n for part in parts), stderr)


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    num_samples: int,
    clusters: Sequence[Hashable] | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> float | None:
    """Standard error of a statistic under resampling of samples, or of whole clusters, with replacement.

    Args:
        statistic: From indices of samples (repeated ones included) to a number; a resample on which it is not
            finite is drawn anew by leaving it out.
        num_samples: The number of samples.
        clusters: What each sample belongs to.
        num_resamples: Number of resamples.
        seed: Of the random numbers.

    Returns:
        The standard deviation over resamples, or None with fewer than two clusters.
    """
    names, inverse = _number(clusters if clusters is not None else range(num_samples))
    if names < 2:
        return None
    members = [np.flatnonzero(inverse == name) for name in range(names)] if names < num_samples else []
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(num_resamples):
        picked = generator.integers(names, size=names)
        value = statistic(np.concatenate([members[name] for name in picked]) if members else picked)
        if np.isfinite(value):
            values.append(value)
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _number(clusters: Sequence[Hashable] | range) -> tuple[int, NDArray[np.int64]]:
    order: dict[Hashable, int] = {}
    inverse = [order.setdefault(cluster, len(order)) for cluster in clusters]
    return len(order), np.asarray(inverse, dtype=np.int64)
