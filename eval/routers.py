"""Routers side by side: the same checkpoint and samples, routed by its own router and by marker tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from eval.benchmarks.lookup import benchmarks_of
from eval.log import LogError, read_log
from eval.metrics.statistics import Score

ROUTING = "routing"
METRICS = ("routing_precision", "routing_recall", "routing_f1", "parse_failure")


@dataclass(frozen=True)
class RouterScores:
    """What one log says of a router.

    Args:
        path: The log.
        router: The router's class.
        constrained: Whether decoding was constrained by the grammar: no figure of routing, shown beside one.
        scores: Of :data:`METRICS`.
    """

    path: Path
    router: str
    constrained: bool
    scores: Mapping[str, Score]


def compare_routers(paths: Sequence[str | Path], data: str | Path | None = None) -> list[RouterScores]:
    """Score the routing benchmark of several logs.

    Args:
        paths: Prediction logs over the same data, without control.
        data: The data directory; the one that each log names by default.

    Raises:
        LogError: If a log has no routing samples, is that of a control, or has other data than the first.
    """
    found: list[RouterScores] = []
    expected: str | None = None
    for path in paths:
        log = read_log(path)
        if ROUTING not in log.benchmarks or log.header.control is not None:
            raise LogError(f"{path}: expected a log of the benchmark '{ROUTING}' without control, got none")
        benchmark = benchmarks_of(log, data)[ROUTING]
        expected = expected or benchmark.data_sha256
        hashes = {benchmark.data_sha256, log.header.identity["data_sha256"][ROUTING]}
        if hashes != {expected}:
            raise LogError(f"{path}: expected predictions on the data of {paths[0]} as they are now, got other data")
        router = log.header.identity["session"].get("router", "markers")
        found.append(RouterScores(Path(path), router, log.header.constrained, benchmark.score(log.rows(ROUTING))))
    return found


def routers_table(rows: Sequence[RouterScores]) -> Table:
    """One row per log."""
    table = Table(title="Routers")
    table.add_column("log", no_wrap=True)
    for name in ("router", "decoding", "n", "precision", "recall", "F1 ± s.e.", "parse failures", "all calls right"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        precision, recall, f1, failures = (row.scores[name] for name in METRICS)
        parts = ", ".join(f"{name.rpartition('right, ')[2]}: {part.value:.3f}" for name, part in f1.parts.items())
        table.add_row(
            str(row.path),
            row.router,
            "constrained" if row.constrained else "free",
            str(f1.n),
            f"{precision.value:.3f}",
            f"{recall.value:.3f}",
            f"{f1.value:.3f} ± {f1.stderr:.3f}",
            f"{failures.value:.4f}",
            parts,
        )
    return table
