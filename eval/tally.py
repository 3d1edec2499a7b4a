"""Scores in one pass: a few numbers per sample are kept, the predictions never."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.metrics.statistics import Contributions, Estimate, Score, bootstrap, macro_mean, mean
from eval.prediction import Prediction

Reduce = Callable[[NDArray[np.float64]], float]


class Tally:
    """Collects what samples contribute to a number, then makes the score.

    Example:
        >>> tally = Tally()
        >>> for row in predictions:
        ...     tally.add(row, float(row.text == row.answer), parts=[row.meta["question_type"]])
        >>> tally.mean("exact match")

    Args:
        num_columns: Numbers per sample: 1 for a mean, 2 for a ratio of sums, ...
    """

    def __init__(self, num_columns: int = 1) -> None:
        self.num_columns = num_columns
        self.keys: list[str] = []
        self.clusters: list[Hashable] = []
        self._values = array("d")
        self._parts: dict[str, array[int]] = {}

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def num_parts(self) -> int:
        """How many parts samples were put into."""
        return len(self._parts)

    @property
    def columns(self) -> NDArray[np.float64]:
        """(n, num_columns) what was added."""
        return np.frombuffer(self._values, dtype=np.float64).reshape(-1, self.num_columns)

    def add(self, row: Prediction, *values: float, parts: Iterable[str] = ()) -> None:
        """Count a sample.

        Args:
            row: For its key and cluster.
            *values: One number per column.
            parts: Names of the parts that it belongs to; the score gives the number on each of them.
        """
        self.put(row.key, row.cluster, values, parts)

    def put(self, key: str, cluster: Hashable, values: Sequence[float], parts: Iterable[str] = ()) -> None:
        """Count what is no single sample, such as a group of rotated questions.

        Raises:
            ValueError: If the number of values is not that of the columns.
        """
        if len(values) != self.num_columns:
            raise ValueError(f"expected {self.num_columns} numbers per sample, got {len(values)}")
        for part in parts:
            self._parts.setdefault(part, array("l")).append(len(self.keys))
        self.keys.append(key)
        self.clusters.append(cluster)
        self._values.extend(values)

    def mean(self, protocol: str, *, scale: float = 1.0, higher_is_better: bool = True, corpus: bool = False) -> Score:
        """The mean of the first column.

        Args:
            protocol: How it was measured, in words.
            scale: Multiplies it, such as 100 for CIDEr as it is published.
            higher_is_better: Whether more is better.
            corpus: Whether it means nothing on a part of the samples, see :class:`eval.metrics.statistics.Score`.
        """
        first = self.columns[:, 0] * scale
        parts = {
            name: mean(first[list(own)].tolist(), [self.clusters[i] for i in own]) for name, own in self._parts.items()
        }
        return self._score(mean(first.tolist(), self.clusters), protocol, parts, None, higher_is_better, corpus, scale)

    def macro_mean(self, protocol: str, *, higher_is_better: bool = True) -> Score:
        """The unweighted mean over the parts of their means; every sample must be in exactly one part.

        Raises:
            ValueError: If one is in none or in several.
        """
        codes = np.full(len(self), -1)
        for code, own in enumerate(self._parts.values()):
            codes[list(own)] = code
        if (codes < 0).any() or sum(map(len, self._parts.values())) != len(self):
            raise ValueError("macro mean: expected every sample in exactly one part")
        whole = self.mean(protocol, higher_is_better=higher_is_better)
        estimate = macro_mean(list(whole.parts.values()))
        columns = np.stack([self.columns[:, 0], codes.astype(np.float64)], 1)
        pairs = Contributions(self.keys, self.clusters, columns, _mean_of_means)
        return Score(
            estimate.value,
            estimate.n,
            estimate.stderr,
            protocol,
            whole.parts,
            higher_is_better,
            contributions=pairs,
        )

    def ratio(self, protocol: str, *, higher_is_better: bool = True, corpus: bool = False) -> Score:
        """The sum of the first column over that of the second, such as edits over words; the error is bootstrapped."""
        return self.statistic(_ratio, protocol, higher_is_better=higher_is_better, corpus=corpus)

    def statistic(self, reduce: Reduce, protocol: str, *, higher_is_better: bool = True, corpus: bool = False) -> Score:
        """Any function of the samples' numbers; its error is bootstrapped over clusters.

        Args:
            reduce: From (m, num_columns) rows to the number.
            protocol: How it was measured, in words.
            higher_is_better: Whether more is better.
            corpus: Whether it means nothing on a part of the samples.
        """
        columns, everything = self.columns, range(len(self))
        names = {"": everything, **self._parts}
        estimates = {name: self._estimate(reduce, columns, np.asarray(own)) for name, own in names.items()}
        whole = estimates.pop("")
        return self._score(whole, protocol, estimates, reduce, higher_is_better, corpus)

    def _estimate(self, reduce: Reduce, columns: NDArray[np.float64], own: NDArray[np.int64]) -> Estimate:
        rows, clusters = columns[own], [self.clusters[i] for i in own.tolist()]
        error = bootstrap(lambda indices: reduce(rows[indices]), len(rows), clusters)
        return Estimate(float(reduce(rows)), len(rows), error)

    def _score(
        self,
        whole: Estimate,
        protocol: str,
        parts: dict[str, Estimate],
        reduce: Reduce | None,
        higher_is_better: bool,
        corpus: bool,
        scale: float = 1.0,
    ) -> Score:
        pairs = Contributions(self.keys, self.clusters, self.columns * scale, reduce)
        na = "" if np.isfinite(whole.value) else "not defined on these samples"
        return Score(
            whole.value,
            whole.n,
            whole.stderr,
            protocol,
            parts,
            higher_is_better,
            corpus,
            na,
            pairs,
        )


def _ratio(rows: NDArray[np.float64]) -> float:
    sums = rows.sum(0)
    return float(sums[0] / sums[1]) if sums[1] else float("nan")


def _mean_of_means(rows: NDArray[np.float64]) -> float:
    codes = rows[:, 1].astype(np.int64)
    counts = np.bincount(codes)
    sums = np.bincount(codes, rows[:, 0])
    return float((sums[counts > 0] / counts[counts > 0]).mean())
