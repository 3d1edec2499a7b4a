"""What predictions look like beyond their score: by length, difficulty and confidence, and why they fail."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from html import escape

import numpy as np

from eval.benchmarks.benchmark import Benchmark
from eval.metrics.calibration import calibration
from eval.metrics.statistics import Estimate, mean
from eval.prediction import Prediction
from eval.report.charts import estimate_bars, estimate_curve

BINS = 8
_FEWEST = 16
"""With fewer answers there is no curve."""


class Profile:
    """Collects a few numbers per prediction while they stream by.

    Args:
        benchmark: Says what is right.
    """

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark
        self.right = array("b")
        self.reasons: Counter[str] = Counter()
        self._columns = {name: array("d") for name in ("reply", "question", "difficulty", "confidence")}

    def over(self, rows: Iterable[Prediction]) -> Iterator[tuple[Prediction, bool]]:
        """The rows as they are, each with whether it is right."""
        for row in rows:
            right = self.benchmark.right(row)
            self.right.append(right)
            answer = self.benchmark.answer(row)
            if not answer.parsed:
                self.reasons[answer.status] += 1
            self._columns["reply"].append(len(row.text.split()))
            self._columns["question"].append(len(row.prompt.split()))
            self._columns["difficulty"].append(difficulty_of(row))
            self._columns["confidence"].append(confidence_of(row))
            yield row, right

    def figures(self) -> str:
        """Curves by length and difficulty, calibration, reasons of failures; each where there is something to see."""
        shown = []
        for name, title in (
            ("difficulty", "right by difficulty"),
            ("question", "right by words of the question"),
            ("reply", "right by words of the reply"),
        ):
            points = self._curve(name)
            if len(points) > 1:
                shown.append(estimate_curve(title, points, {"difficulty": "difficulty"}.get(name, "words")))
        shown.append(self._calibration())
        charts = "".join(shown)
        failures = [(reason, Estimate(count / len(self.right), count)) for reason, count in self.reasons.most_common(8)]
        bars = f"<h4>Replies that do not parse</h4>{estimate_bars(failures)}" if failures else ""
        return (f'<div class="charts">{charts}</div>' if charts else "") + bars

    def _curve(self, name: str) -> list[tuple[float, Estimate]]:
        """Means of groups of nearly equal size; equal places are one group."""
        values, right = np.frombuffer(self._columns[name]), np.frombuffer(self.right, dtype=np.int8)
        there = np.isfinite(values)
        values, right = values[there], right[there]
        if len(values) < _FEWEST:
            return []
        edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)))
        groups = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(len(edges) - 2, 0))
        return [
            (float(values[groups == group].mean()), mean(right[groups == group].astype(float).tolist()))
            for group in np.unique(groups)
        ]

    def _calibration(self) -> str:
        values, right = np.frombuffer(self._columns["confidence"]), np.frombuffer(self.right, dtype=np.int8)
        there = np.isfinite(values)
        if there.sum() < _FEWEST:
            return ""
        found = calibration(values[there].tolist(), (right[there] > 0).tolist())
        title = f"calibration: error {found.error:.3f}, Brier {found.brier:.3f}"
        return estimate_curve(title, found.bins, "confidence", diagonal=True)


def confidence_of(row: Prediction) -> float:
    """How sure the model was, of the head's label, probability or box, or else of its words; NaN if unknown."""
    result = next((item for item in row.results if item is not None), None)
    if result is not None:
        if result["type"] == "label" and result["probabilities"]:
            return float(max(result["probabilities"].values()))
        if result["type"] == "score":
            return max(float(result["score"]), 1 - float(result["score"]))
        if result["type"] == "boxes" and result["scores"]:
            return float(result["scores"][0])
    return math.nan if row.log_probability is None else math.exp(row.log_probability)


def difficulty_of(row: Prediction) -> float:
    """``meta.difficulty``, where it is a number; NaN otherwise."""
    value = row.meta.get("difficulty")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def part_bars(entry: Mapping[str, object]) -> str:
    """Bars of a score's parts, kind by kind where they are named ``KIND: VALUE``."""
    parts = entry.get("parts")
    if not isinstance(parts, Mapping) or not parts:
        return ""
    groups: dict[str, list[tuple[str, Estimate]]] = {}
    for name, part in parts.items():
        kind, _, value = str(name).partition(": ")
        estimate = Estimate(float(part["value"]), int(part["n"]), part["stderr"])
        groups.setdefault(kind if value else "", []).append((value or kind, estimate))
    return "".join(
        (f"<h4>{escape(kind)}</h4>" if kind else "") + estimate_bars(sorted(rows, key=lambda item: item[0]))
        for kind, rows in groups.items()
    )
