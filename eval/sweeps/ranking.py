"""Ranks towers over tasks: z-scores per task and mode, their mean, and how the tasks' orders correlate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr


@dataclass(frozen=True)
class Ranking:
    """A table of towers by columns, a column being a task trained in a mode.

    Args:
        towers: (backbone, pretraining) per row, best mean z first.
        columns: (task, mode) per column.
        scores: (towers, columns), means over seeds.
        z: Likewise: ``(score - mean of the column) / standard deviation of the column``, 0 where all are equal.
        correlation: (columns, columns) Spearman's rank correlation; NaN for a column without differences.
    """

    towers: Sequence[tuple[str, str]]
    columns: Sequence[tuple[str, str]]
    scores: np.ndarray
    z: np.ndarray
    correlation: np.ndarray

    @property
    def mean_z(self) -> np.ndarray:
        """(towers,)."""
        mean: np.ndarray = self.z.mean(1)
        return mean

    def family(self, place: int) -> dict[str, float]:
        """Mean z by backbone (0) or by pretraining (1)."""
        names = dict.fromkeys(tower[place] for tower in self.towers)
        return {
            name: float(np.mean([z for tower, z in zip(self.towers, self.mean_z, strict=True) if tower[place] == name]))
            for name in names
        }

    def agreement(self) -> float:
        """Mean rank correlation over pairs of columns that have one; NaN if none has."""
        pairs = self.correlation[np.triu_indices(len(self.columns), k=1)]
        known = pairs[~np.isnan(pairs)]
        return float(known.mean()) if len(known) else float("nan")


def rank(results: Mapping[str, Mapping[str, Any]]) -> Ranking:
    """Rank what a sweep measured.

    Args:
        results: As :func:`training.sweeps.runner.run_sweep` returns them.

    Raises:
        ValueError: If there are fewer than two towers, or a tower lacks a task that another has.
    """
    towers = list(dict.fromkeys((value["backbone"], value["pretraining"]) for value in results.values()))
    columns = list(dict.fromkeys((value["task"], value["mode"]) for value in results.values()))
    if len(towers) < 2:
        raise ValueError(f"a ranking: expected two towers or more, got {len(towers)}")
    gathered: dict[tuple[str, ...], list[float]] = {}
    for value in results.values():
        place = (value["backbone"], value["pretraining"], value["task"], value["mode"])
        gathered.setdefault(place, []).append(float(value["value"]))
    missing = [(*tower, *column) for tower in towers for column in columns if (*tower, *column) not in gathered]
    if missing:
        raise ValueError(f"a ranking: expected every tower on every task, {', '.join(missing[0])} is not measured")
    scores = np.array([[np.mean(gathered[*tower, *column]) for column in columns] for tower in towers])
    spread = scores.std(0)
    z = np.divide(scores - scores.mean(0), spread, out=np.zeros_like(scores), where=spread > 0)
    order = np.argsort(-z.mean(1), kind="stable")
    return Ranking([towers[i] for i in order], columns, scores[order], z[order], _correlation(scores))


def _correlation(scores: np.ndarray) -> np.ndarray:
    """Spearman's, column by column; NaN where a column has one value."""
    count = scores.shape[1]
    matrix = np.full((count, count), np.nan)
    varied = [i for i in range(count) if len(set(rankdata(scores[:, i]))) > 1]
    for i in varied:
        for j in varied:
            matrix[i, j] = spearmanr(scores[:, i], scores[:, j]).statistic
    return matrix
