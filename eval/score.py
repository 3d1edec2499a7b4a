"""From prediction logs to numbers: every metric with its error, its protocol and its controls in one table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from eval.benchmarks.answers import count_calls
from eval.benchmarks.benchmark import Benchmark, BenchmarkError
from eval.benchmarks.lookup import benchmarks_of
from eval.benchmarks.quickstart import CONTROL_LIMITS, MARGINS, TARGETS
from eval.controls import CONTROLS, PREDICTED_CONTROLS
from eval.judges.judge import Judge
from eval.log import Log, LogError, read_log
from eval.metrics.routing import RATES, routing_rate
from eval.metrics.statistics import Score
from eval.prediction import Prediction
from eval.tally import Tally

Scores = dict[str, dict[str, Any]]
PARSES_BY_CONSTRUCTION = "a constant reply parses by construction"
MEANINGLESS = "a metric of the whole corpus, which means nothing on a part of it"
_RunKey = tuple[str | None, bool]
_FACTS = ("data_sha256", "n_expected", "protocols")


class Watch:
    """What every score carries beside its value, counted while the predictions stream by.

    Args:
        benchmark: Reads the answers.

    Attributes:
        reasons: Why replies did not parse -> how many.
    """

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark
        self.reasons: Counter[str] = Counter()
        self._failures, self._calls = Tally(), Tally(3)

    def over(self, rows: Iterable[Prediction]) -> Iterator[Prediction]:
        """The rows as they are."""
        for row in rows:
            answer = self.benchmark.answer(row)
            self._failures.add(row, float(not answer.parsed))
            if not answer.parsed:
                self.reasons[answer.status] += 1
            if row.reference.get("calls"):
                self._calls.add(row, *count_calls(row))
            yield row

    def to_json(self) -> dict[str, Any]:
        """``parse_failure`` and, where calls are expected, ``routing``."""
        failures = self._failures.mean("")
        found: dict[str, Any] = {
            "parse_failure": {**_estimate(failures), "reasons": dict(self.reasons.most_common())},
        }
        if len(self._calls):
            found["routing"] = {
                name: _estimate(self._calls.statistic(partial(routing_rate, name=name), "")) for name in RATES
            }
        return found


def score_files(
    paths: Sequence[str | Path],
    data: str | Path | None = None,
    catalogs: Sequence[str | Path] = (),
    judge: Judge | None = None,
) -> Scores:
    """Score logs of one model, its own and those of its controls.

    Args:
        paths: Prediction logs, files or folders; their headers say which control each is.
        data: The data directory; the one that the first log names by default.
        catalogs: Of benchmark rows beside the shipped ones.
        judge: For metrics that need one; without it they are n/a.

    Returns:
        Metric -> ``value`` (None with ``na`` saying why), ``n``, ``n_expected``, ``complete``, ``stderr``,
        ``protocol_id``, ``protocol`` in words, ``parts``, ``parse_failure``, ``routing`` where calls are expected,
        ``controls`` (a number or None each), ``controls_na`` (why a control is None), ``controls_n``,
        ``constant_about`` (where the constant reply comes from), ``constrained``
        (the same metric under constrained decoding, where it was run), ``meaningless`` where a corpus metric was taken
        on a part, ``judge`` where one decides, ``benchmark``, ``split``, ``data_sha256``, ``checkpoint_sha256``,
        ``generation``, ``versions``.

    Raises:
        LogError: If the logs do not belong together, or the data or the protocol changed since.
        ValueError: If there is no log of the model itself.
    """
    runs = group_logs([read_log(path) for path in paths])
    own = runs.get((None, False))
    if not own:
        raise ValueError("expected at least one log of the model itself, free-running and without control, got none")
    scores: Scores = {}
    for log in dict.fromkeys(own.values()):
        for benchmark in benchmarks_of(log, data, catalogs).values():
            benchmark.judge = judge
            scores |= _score_benchmark(benchmark, runs)
    if "parse_failure" in scores:
        others = {entry["benchmark"]: entry["parse_failure"] for entry in scores.values()}
        others.pop(scores["parse_failure"]["benchmark"])
        scores["parse_failure"]["parts"] = {
            name: {key: other[key] for key in ("value", "n", "stderr")} for name, other in sorted(others.items())
        }
    return scores


def check_belongs(log: Log, benchmark: Benchmark) -> str:
    """Whether a log was predicted on this benchmark, in this protocol.

    Returns:
        "", or why the benchmark's files could not be compared: they are not here.

    Raises:
        LogError: If data or protocol are others.
    """
    asked = log.header.identity.get("protocols", {}).get(benchmark.name, benchmark.protocol)
    if asked != benchmark.protocol:
        raise LogError(
            f"{log.path}: benchmark '{benchmark.name}' was asked under protocol {asked}, expected "
            f"{benchmark.protocol}; ask again, or replay the log where its prompts are the same"
        )
    try:
        present = benchmark.data_sha256
    except BenchmarkError as error:
        return str(error)
    if present != log.header.identity["data_sha256"][benchmark.name]:
        raise LogError(
            f"{log.path}: benchmark '{benchmark.name}' in {benchmark.data} is not the data that was predicted on"
        )
    return ""


def _score_benchmark(benchmark: Benchmark, runs: Mapping[_RunKey, Mapping[str, Log]]) -> Scores:
    name = benchmark.name
    log = runs[None, False][name]
    rows = log.rows(name)
    absent = check_belongs(log, benchmark)
    identity = log.header.identity
    watch = Watch(benchmark)
    own = benchmark.score(watch.over(rows))
    watched = watch.to_json()
    controls: dict[str, dict[str, Score]] = {}
    reasons: dict[str, str] = {}
    counts: dict[str, int] = {}
    for control in PREDICTED_CONTROLS:
        other = runs.get((control, False), {}).get(name)
        if control in benchmark.without:
            reasons[control] = benchmark.without[control]
        elif other is None:
            reasons[control] = "not run"
        else:
            controls[control], counts[control] = benchmark.score(other.rows(name)), len(other.rows(name))
    if absent:
        reasons["constant"] = f"the benchmark's files are not here: {absent}"
    elif benchmark.constant_na:
        reasons["constant"] = benchmark.constant_na
    else:
        controls["constant"], counts["constant"] = benchmark.score(map(benchmark.constant, rows)), len(rows)
    legal = runs.get((None, True), {}).get(name)
    constrained = benchmark.score(legal.rows(name)) if legal is not None else {}
    expected = int(identity["n_expected"][name])
    scores: Scores = {}
    for metric, score in own.items():
        na = {**reasons, **({"constant": PARSES_BY_CONSTRUCTION} if metric == "parse_failure" else {})}
        na |= {control: found[metric].na for control, found in controls.items() if found[metric].na}
        scores[metric] = {
            **score.to_json(),
            "protocol_id": benchmark.protocol,
            "n_expected": expected,
            "complete": len(rows) >= expected,
            "skipped": len([item for item in log.skipped if item.benchmark == name]),
            **watched,
            "controls": {
                control: controls[control][metric].value if control in controls and control not in na else None
                for control in CONTROLS
            },
            "controls_na": na,
            "controls_n": {control: count for control, count in counts.items() if control not in na},
            "constant_about": benchmark.constant_about if "constant" not in na else None,
            "benchmark": name,
            "split": benchmark.split,
            "data_sha256": identity["data_sha256"][name],
            "checkpoint_sha256": identity["checkpoint_sha256"],
            "generation": identity.get("generation", {}).get(name, {}),
            "versions": identity["versions"],
        }
        if benchmark.needs_judge:
            scores[metric]["judge"] = None if benchmark.judge is None else benchmark.judge.identity
        if score.corpus and len(rows) < expected:
            scores[metric]["meaningless"] = MEANINGLESS
        if constrained:
            scores[metric]["constrained"] = constrained[metric].to_json()
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
    controls = entry["controls"]
    if entry["value"] is None:
        return "", None
    value = float(entry["value"])
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
    """The scores against their controls; what is incomplete or means nothing is marked."""
    table = Table(title="Free-running scores against controls")
    table.add_column("metric", no_wrap=True)
    for name in ("value ± s.e.", "n", "unparsed", "meant to reach", *CONTROLS, "constrained"):
        table.add_column(name.replace("random_weights", "random"), justify="right", no_wrap=True)
    notes = []
    for metric, entry in scores.items():
        words, met = verdict(metric, entry)
        colour = {True: "green", False: "red", None: "default"}[met]
        n = str(entry["n"]) if entry["complete"] else f"[red]{entry['n']} of {entry['n_expected']}[/red]"
        value = f"[{colour}]{_number(entry['value'])}[/{colour}] ± {_number(entry['stderr'])}"
        if entry["value"] is None:
            value, note = "n/a", f"{metric}: n/a: {entry['na']}"
            notes.append(note)
        elif "meaningless" in entry:
            value = f"[red]{_number(entry['value'])} ?[/red]"
            notes.append(f"{metric}: {entry['meaningless']}")
        constrained = entry.get("constrained")
        table.add_row(
            metric,
            value,
            n,
            _number(entry["parse_failure"]["value"]),
            words,
            *(_number(entry["controls"][name]) for name in CONTROLS),
            _number(constrained["value"]) if constrained else "",
        )
    table.caption = "\n".join(notes) or None
    return table


def group_logs(logs: Sequence[Log]) -> dict[_RunKey, dict[str, Log]]:
    """(control, constrained) -> benchmark -> its log.

    Raises:
        LogError: If logs are of different models, splits, data or protocols, or hold the same twice.
    """
    runs: dict[_RunKey, dict[str, Log]] = {}
    facts: dict[tuple[str, str], Any] = {}
    for log in logs:
        identity = log.header.identity
        for name in ("checkpoint_sha256", "split"):
            if identity[name] != logs[0].header.identity[name]:
                raise LogError(f"{log.path}: {name} differs from that of {logs[0].path}; they do not belong together")
        for fact in _FACTS:
            for benchmark, value in identity.get(fact, {}).items():
                if facts.setdefault((fact, benchmark), value) != value:
                    raise LogError(f"{log.path}: {fact} of benchmark '{benchmark}' differs from that of another log")
        run = runs.setdefault((log.header.control, log.header.constrained), {})
        for name in log.benchmarks:
            if name in run:
                raise LogError(f"{log.path}: benchmark '{name}' of this kind is in {run[name].path} already")
            run[name] = log
    return runs


def _estimate(score: Score) -> dict[str, Any]:
    return {name: value for name, value in score.to_json().items() if name in ("value", "n", "stderr")}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
