"""From prediction logs to numbers: every metric with its error, its protocol and its controls in one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from eval.benchmarks.benchmark import Benchmark
from eval.benchmarks.lookup import find_benchmarks
from eval.benchmarks.quickstart import CONTROL_LIMITS, MARGINS, TARGETS
from eval.controls import CONTROLS, PREDICTED_CONTROLS
from eval.log import LogContents, LogError, read_log
from eval.metrics.statistics import mean
from eval.prediction import Prediction

Scores = dict[str, dict[str, Any]]
BenchmarkFactory = Callable[[str | Path, str, Sequence[str]], dict[str, Benchmark]]
_RunKey = tuple[str | None, bool]
PARSES_BY_CONSTRUCTION = "a constant reply parses by construction"


def score_files(
    paths: Sequence[str | Path],
    data: str | Path | None = None,
    make_benchmarks: BenchmarkFactory = find_benchmarks,
) -> Scores:
    """Score logs of one checkpoint on one split, the model's own and those of its controls.

    Args:
        paths: Prediction logs; their headers say which control each is.
        data: The data directory; the one that the first log names by default.
        make_benchmarks: From data directory, split and names to benchmarks.

    Returns:
        Metric -> ``value``, ``n``, ``n_expected``, ``stderr``, ``protocol``, ``parts``, ``controls`` (a number or None
        each), ``controls_na`` (why a control is None), ``controls_n``, ``constrained`` (the same metric under
        constrained decoding, where it was run), ``benchmark``, ``split``, ``data_sha256``, ``checkpoint_sha256``.

    Raises:
        LogError: If the logs do not belong together, or the data changed since.
        ValueError: If there is no log of the model itself.
    """
    logs = [read_log(path) for path in paths]
    runs = _merge(logs)
    own = runs.get((None, False))
    if not own:
        raise ValueError("expected at least one log of the model itself, free-running and without control, got none")
    first = next(log for log in logs if log.header.control is None and not log.header.constrained)
    split = str(first.header.identity["split"])
    hashes, expected = _facts(logs, "data_sha256"), _facts(logs, "n_expected")
    benchmarks = make_benchmarks(data or first.header.info["data"], split, sorted(own))
    scores: Scores = {}
    for name, benchmark in benchmarks.items():
        if benchmark.data_sha256 != hashes[name]:
            raise LogError(
                f"{first.path}: benchmark '{name}' in {benchmark.data} is not the data that was predicted on"
            )
        for metric, score in benchmark.score(own[name]).items():
            controls, reasons, counts = _controls(benchmark, metric, own[name], runs)
            scores[metric] = {
                **score.to_json(),
                "n_expected": expected[name],
                "controls": controls,
                "controls_na": reasons,
                "controls_n": counts,
                "benchmark": name,
                "split": split,
                "data_sha256": hashes[name],
                "checkpoint_sha256": first.header.identity["checkpoint_sha256"],
            }
            constrained = runs.get((None, True), {}).get(name)
            if constrained:
                scores[metric]["constrained"] = benchmark.score(constrained)[metric].to_json()
    if "parse_failure" in scores:
        others = {name: mean([float(row.failed) for row in rows]) for name, rows in own.items() if name != "routing"}
        scores["parse_failure"]["parts"] = {name: other.to_json() for name, other in sorted(others.items())}
    return scores


def write_scores(scores: Scores, path: str | Path) -> None:
    """Write the flat JSON object."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(scores, indent=1, ensure_ascii=False) + "\n")


def verdict(metric: str, entry: Mapping[str, Any]) -> tuple[str, bool | None]:
    """What a metric was meant to reach, in words, and whether it did (None where nothing was set or measured)."""
    words: list[str] = []
    met: list[bool] = []
    value, controls = float(entry["value"]), entry["controls"]
    if metric in TARGETS:
        sign, limit = TARGETS[metric]
        words.append(f"{'≥' if sign == '>=' else '≤'} {limit:g}")
        met.append(value >= limit if sign == ">=" else value <= limit)
    if metric in MARGINS and controls.get(MARGINS[metric][0]) is not None:
        control, margin = MARGINS[metric]
        words.append(f"≥ {control} + {margin:g}")
        met.append(value >= controls[control] + margin)
    if metric in CONTROL_LIMITS and controls.get(CONTROL_LIMITS[metric][0]) is not None:
        control, limit = CONTROL_LIMITS[metric]
        words.append(f"{control} ≤ {limit:g}")
        met.append(controls[control] <= limit)
    return ", ".join(words), all(met) if met else None


def score_table(scores: Scores) -> Table:
    """The scores against their controls."""
    table = Table(title="Free-running scores against controls")
    table.add_column("metric", no_wrap=True)
    for name in ("value ± s.e.", "n", "meant to reach", *CONTROLS, "constrained"):
        table.add_column(name.replace("random_weights", "random"), justify="right", no_wrap=True)
    for metric, entry in scores.items():
        words, met = verdict(metric, entry)
        colour = {True: "green", False: "red", None: "default"}[met]
        n = (
            str(entry["n"])
            if entry["n"] == entry["n_expected"]
            else f"[red]{entry['n']} of {entry['n_expected']}[/red]"
        )
        controls = [_number(entry["controls"][name]) for name in CONTROLS]
        constrained = entry.get("constrained")
        table.add_row(
            metric,
            f"[{colour}]{_number(entry['value'])}[/{colour}] ± {_number(entry['stderr'])}",
            n,
            words,
            *controls,
            _number(constrained["value"]) if constrained else "",
        )
    return table


def _controls(
    benchmark: Benchmark,
    metric: str,
    own: Sequence[Prediction],
    runs: Mapping[_RunKey, Mapping[str, list[Prediction]]],
) -> tuple[dict[str, float | None], dict[str, str], dict[str, int]]:
    values: dict[str, float | None] = dict.fromkeys(CONTROLS)
    reasons: dict[str, str] = {}
    counts: dict[str, int] = {}
    for name in PREDICTED_CONTROLS:
        rows = runs.get((name, False), {}).get(benchmark.name)
        if name in benchmark.without:
            reasons[name] = benchmark.without[name]
        elif not rows:
            reasons[name] = "not run"
        else:
            values[name], counts[name] = benchmark.score(rows)[metric].value, len(rows)
    if metric == "parse_failure":
        reasons["constant"] = PARSES_BY_CONSTRUCTION
    else:
        values["constant"] = benchmark.score(map(benchmark.constant, own))[metric].value
        counts["constant"] = len(own)
    return values, reasons, counts


def _merge(logs: Sequence[LogContents]) -> dict[_RunKey, dict[str, list[Prediction]]]:
    runs: dict[_RunKey, dict[str, list[Prediction]]] = {}
    sources: dict[tuple[_RunKey, str], Path] = {}
    for log in logs:
        for name in ("checkpoint_sha256", "split"):
            if log.header.identity[name] != logs[0].header.identity[name]:
                raise LogError(f"{log.path}: {name} differs from that of {logs[0].path}; they do not belong together")
        key = (log.header.control, log.header.constrained)
        for row in log.predictions:
            source = sources.setdefault((key, row.benchmark), log.path)
            if source != log.path:
                raise LogError(f"{log.path}: benchmark '{row.benchmark}' of this kind is in {source} already")
            runs.setdefault(key, {}).setdefault(row.benchmark, []).append(row)
    return runs


def _facts(logs: Sequence[LogContents], name: str) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for log in logs:
        for benchmark, value in log.header.identity[name].items():
            if facts.setdefault(benchmark, value) != value:
                raise LogError(f"{log.path}: {name} of benchmark '{benchmark}' differs from that of another log")
    return facts


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
