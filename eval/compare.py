"""Two or more runs on the same samples in the same protocol: paired differences with confidence intervals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from eval.benchmarks.benchmark import Benchmark
from eval.benchmarks.lookup import benchmarks_of
from eval.judges.judge import Judge
from eval.log import Log, LogError, read_log
from eval.metrics.pairing import LEVEL, Difference, holm, paired_difference
from eval.metrics.statistics import Score
from eval.prediction import Prediction
from eval.score import check_belongs


@dataclass(frozen=True)
class Comparison:
    """A metric of two runs.

    Args:
        metric: Its name.
        benchmark: Of which benchmark.
        baseline: Label of the first run.
        other: Label of the second.
        protocol_id: Under which both were asked.
        before: The first run's score on all of its samples.
        after: The second's.
        difference: The paired difference, or None where ``reason`` says why there is none.
        reason: Such as "single samples have no number".
        p_holm: The p-value adjusted for the number of metrics compared with this run, or None.
        complete: Whether both runs answered all samples.
    """

    metric: str
    benchmark: str
    baseline: str
    other: str
    protocol_id: str
    before: Score
    after: Score
    difference: Difference | None
    reason: str = ""
    p_holm: float | None = None
    complete: bool = True

    @property
    def better(self) -> bool | None:
        """Whether the second run is better (True), worse (False), or not to be told apart (None)."""
        found = self.difference
        if found is None or found.low is None or found.high is None or found.low <= 0 <= found.high:
            return None
        return (found.value > 0) == self.after.higher_is_better

    @property
    def is_regression(self) -> bool:
        """Whether the second run is worse beyond chance, the number of metrics that were looked at included."""
        return self.better is False and (self.p_holm is None or self.p_holm < 1 - LEVEL)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        found = self.difference
        numbers = {} if found is None else {**vars(found), "difference": found.value}
        return {
            "metric": self.metric,
            "benchmark": self.benchmark,
            "baseline": self.baseline,
            "other": self.other,
            "protocol_id": self.protocol_id,
            "higher_is_better": self.after.higher_is_better,
            **numbers,
            "reason": self.reason,
            "p_holm": self.p_holm,
            "complete": self.complete,
        }


@dataclass
class _Shown:
    """What media each sample was shown, as the rows stream by."""

    media: dict[str, int] = field(default_factory=dict)

    def over(self, rows: Iterable[Prediction]) -> Iterator[Prediction]:
        for row in rows:
            if row.media_sha256:
                text = json.dumps(dict(sorted(row.media_sha256.items())))
                self.media[row.key] = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
            yield row


def compare_logs(
    paths: Sequence[str | Path],
    data: str | Path | None = None,
    catalogs: Sequence[str | Path] = (),
    judge: Judge | None = None,
    only: Collection[str] | None = None,
) -> list[Comparison]:
    """Compare runs with the first of them.

    Args:
        paths: Two logs or more. A control's log is compared like a model's.
        data: Where the benchmarks' files are, if not where the logs say.
        catalogs: Of benchmark rows beside the shipped ones.
        judge: For metrics that need one.
        only: Benchmarks to compare; all that both have by default.

    Returns:
        One entry per metric and run, benchmarks that both have only.

    Raises:
        LogError: If protocols, data, decoding limits or media differ, naming what; or if two runs share no benchmark.
        ValueError: With fewer than two logs.
    """
    if len(paths) < 2:
        raise ValueError(f"expected two logs or more to compare, got {len(paths)}")
    logs = [read_log(path) for path in paths]
    labels = label_runs(logs)
    first = logs[0]
    benchmarks = benchmarks_of(first, data, catalogs)
    found: list[Comparison] = []
    for log, label in zip(logs[1:], labels[1:], strict=True):
        shared = {name: item for name, item in benchmarks.items() if name in log.benchmarks}
        shared = shared if only is None else {name: item for name, item in shared.items() if name in only}
        if not shared:
            raise LogError(f"{log.path} and {first.path}: expected benchmarks in common, got none")
        own: list[Comparison] = []
        for benchmark in shared.values():
            benchmark.judge = judge
            own += _compare_one(benchmark, first, log, labels[0], label)
        adjusted = holm([None if item.difference is None else item.difference.p for item in own])
        found += [Comparison(**{**vars(item), "p_holm": p}) for item, p in zip(own, adjusted, strict=True)]
    return found


def chat_benchmarks(log: Log) -> list[str]:
    """The benchmarks of a log that are answered in words: none of their references holds a call."""
    return [name for name in log.benchmarks if not any(row.reference.get("calls") for row in log.rows(name))]


def chat_gate(
    before: str | Path,
    after: Sequence[str | Path],
    data: str | Path | None = None,
    catalogs: Sequence[str | Path] = (),
    judge: Judge | None = None,
) -> list[Comparison]:
    """Compare answers in words before and after something was taught beside them, such as expert heads.

    The gate is passed where none of them :attr:`Comparison.is_regression`.

    Args:
        before: The log of the model as it was.
        after: Logs of the model as it is; those that share no such benchmark are left out.
        data: Where the benchmarks' files are, if not where the logs say.
        catalogs: Of benchmark rows beside the shipped ones.
        judge: For metrics that need one.

    Raises:
        LogError: If none of the logs shares one, or they were not measured alike.
    """
    chat = set(chat_benchmarks(read_log(before)))
    shared = [path for path in after if chat & set(read_log(path).benchmarks)]
    if not shared:
        raise LogError(f"{before}: expected answers in words to questions that the other logs ask too, got none")
    return [item for path in shared for item in compare_logs([before, path], data, catalogs, judge, chat)]


def label_runs(logs: Sequence[Log]) -> list[str]:
    """Short names for logs: what of their paths tells them apart, and the control."""
    parts = [log.path.with_suffix("").parts for log in logs]
    while len(set(parts)) == len(parts) and all(len(own) > 1 for own in parts) and len({own[0] for own in parts}) == 1:
        parts = [own[1:] for own in parts]
    while all(len(own) > 1 for own in parts) and len({own[-1] for own in parts}) == 1:
        parts = [own[:-1] for own in parts]
    return ["/".join(own[-2:]) for own in parts]


def check_same_protocol(benchmark: str, first: Log, second: Log) -> None:
    """Refuse to compare what was not measured alike.

    Raises:
        LogError: Naming every difference.
    """
    one, two = first.header.identity, second.header.identity
    pairs: dict[str, tuple[Any, Any]] = {
        "protocol": (one.get("protocols", {}).get(benchmark), two.get("protocols", {}).get(benchmark)),
        "data_sha256": (one["data_sha256"].get(benchmark), two["data_sha256"].get(benchmark)),
        "constrained decoding": (first.header.constrained, second.header.constrained),
    }
    limits = [
        log.header.identity.get("generation", {}).get(benchmark, {}).get("max_new_tokens") for log in (first, second)
    ]
    if None not in limits:
        pairs["max_new_tokens"] = (limits[0], limits[1])
    different = [f"{name}: {a!r} and {b!r}" for name, (a, b) in pairs.items() if a != b]
    if different:
        raise LogError(
            f"{second.path} and {first.path}: benchmark '{benchmark}' was not measured alike ({'; '.join(different)}); "
            "scores of different protocols are not compared"
        )


def _compare_one(benchmark: Benchmark, first: Log, second: Log, baseline: str, other: str) -> list[Comparison]:
    name = benchmark.name
    check_same_protocol(name, first, second)
    check_belongs(first, benchmark)
    shown = _Shown(), _Shown()
    logs = (first, second)
    scores = [benchmark.score(own.over(log.rows(name))) for own, log in zip(shown, logs, strict=True)]
    if first.header.control == second.header.control:
        keys = shown[0].media.keys() & shown[1].media.keys()
        changed = sorted(key for key in keys if shown[0].media[key] != shown[1].media[key])
        if changed:
            raise LogError(
                f"{second.path} and {first.path}: benchmark '{name}' showed other media to {len(changed)} samples, "
                f"such as '{changed[0]}'"
            )
    complete = all(len(log.rows(name)) >= log.header.identity["n_expected"][name] for log in logs)
    found = []
    for metric, score in scores[1].items():
        before = scores[0][metric]
        difference, reason = _difference(before, score)
        found.append(
            Comparison(
                metric, name, baseline, other, benchmark.protocol, before, score, difference, reason, None, complete
            )
        )
    return found


def _difference(before: Score, after: Score) -> tuple[Difference | None, str]:
    if before.na or after.na:
        return None, before.na or after.na
    if before.contributions is None or after.contributions is None:
        return None, "single samples have no number in this metric, so runs cannot be paired"
    return paired_difference(before.contributions, after.contributions), ""


def comparison_table(found: Sequence[Comparison]) -> Table:
    """Differences with their intervals; what can be told from chance is coloured."""
    table = Table(title=f"Against {found[0].baseline}: second run minus first, 95 % intervals, paired")
    for name in ("run", "metric", "first", "second"):
        table.add_column(name, no_wrap=True)
    for name in ("difference", "interval", "p (Holm)", "n", "rose / fell"):
        table.add_column(name, justify="right", no_wrap=True)
    for item in found:
        number = item.difference
        if number is None:
            table.add_row(item.other, item.metric, "", "", f"n/a: {item.reason}", "", "", "", "")
            continue
        colour = {True: "green", False: "red", None: "default"}[item.better]
        interval = "-" if number.low is None else f"{number.low:+.3f} to {number.high:+.3f}"
        n = str(number.n) if item.complete else f"[red]{number.n}, incomplete[/red]"
        table.add_row(
            item.other,
            item.metric,
            f"{number.first:.3f}",
            f"{number.second:.3f}",
            f"[{colour}]{number.value:+.3f}[/{colour}]",
            interval,
            "-" if item.p_holm is None else f"{item.p_holm:.3g}",
            n,
            "" if number.rose is None else f"{number.rose} / {number.fell}",
        )
    return table


def write_comparisons(found: Sequence[Comparison], path: str | Path) -> None:
    """Write a JSON list."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Mapping[str, Any]] = [item.to_json() for item in found]
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
