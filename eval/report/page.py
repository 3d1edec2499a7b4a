"""The pages themselves: about a run that was trained here, or about any prediction logs of one model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from safetensors import safe_open

from eval.benchmarks.benchmark import Benchmark, BenchmarkError
from eval.benchmarks.lookup import benchmarks_of
from eval.compare import Comparison, chat_gate
from eval.judges.judge import Judge
from eval.log import RUN, Log, LogError, read_log
from eval.report.cards import card, choose, samples_of
from eval.report.curves import files_of, read_stages, stage_sections
from eval.report.frame import figure, write_page
from eval.report.gate import gate_fact, gate_section
from eval.report.profile import Profile, part_bars
from eval.report.table import is_complete, score_section
from eval.score import Scores, check_belongs, score_files, verdict
from models.checkpoint import WEIGHTS
from training.phases import clock

LEAD = (
    "Everything below was measured free-running on held-out data: the model had to write its own task tokens, and a "
    "reply that does not parse counts as wrong."
)


def write_report(
    run: str | Path,
    out: str | Path,
    *,
    data: str | Path | None = None,
    checkpoint: str | Path | None = None,
    before: str | Path | None = None,
) -> None:
    """Write the page about a run.

    Args:
        run: Holds ``scores.json``, prediction logs (``*.jsonl`` at any depth), ``phases.json`` and Lightning's
            ``metrics.csv`` files; whatever but the logs is missing is left out of the page.
        out: The page.
        data: The data directory; the one that the log names by default.
        checkpoint: The checkpoint; the one that the log names by default.
        before: A log of the model as it was, such as before its heads were trained: the page says whether answers in
            words became worse.

    Raises:
        ValueError: If there is no log of the model itself, or its data is not there.
    """
    run = Path(run)
    logs = own_logs(run)
    log = logs[0]
    scores: Scores = _json(run / "scores.json") or {}
    phases = read_phases(run / "phases.json")
    sizes = parameter_counts(Path(checkpoint or log.header.info.get("checkpoint", "")) / WEIGHTS)
    gate = _gate(before, logs, data)
    facts = [gate_fact(gate)] if gate else []
    if phases:
        facts.append((clock(seconds_at_work(run / "phases.json")), "from nothing to this page"))
    if sizes:
        facts.append((f"{sum(sizes.values()) / 1e6:.1f} M", "parameters"))
    sections = [
        ("trained", "What was trained, and how long", _trained(phases, sizes)),
        ("scores", "Scores against controls", score_section(scores)),
        *([gate_section(gate)] if gate else []),
        ("examples", "Held-out examples", _examples(logs, data, (), scores)),
        ("curves", "Learning curves", _curves(stage_sections(read_stages(run)))),
    ]
    title = "One small model that sees, hears, reads graphs, points, cuts out and draws"
    write_page(out, title, LEAD, [*facts, *_facts(logs, scores)], sections, _footer(log))


def write_log_report(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    data: str | Path | None = None,
    catalogs: Sequence[str | Path] = (),
    judge: Judge | None = None,
    before: str | Path | None = None,
) -> None:
    """Write a page about prediction logs of one model, its own and those of its controls.

    Args:
        paths: The logs.
        out: The page.
        data: Where the benchmarks' files are, if not where the logs say.
        catalogs: Of benchmark rows beside the shipped ones.
        judge: For metrics that need one.
        before: As of :func:`write_report`.

    Raises:
        ValueError: If the logs do not belong together, or none is the model's own.
    """
    logs = [read_log(path) for path in paths]
    own = [log for log in logs if log.header.control is None and not log.header.constrained]
    if not own:
        raise ValueError("expected at least one log of the model itself, free-running and without control, got none")
    scored = [path for path, log in zip(paths, logs, strict=True) if set(log.benchmarks) - set(_inputs(log))]
    scores = score_files(scored, data, catalogs, judge) if scored else {}
    name = (
        own[0].header.info.get("checkpoint")
        or own[0].header.info.get("replayed")
        or own[0].header.identity["checkpoint_sha256"]
    )
    gate = _gate(before, own, data, catalogs, judge)
    sections = [
        ("scores", "Scores against controls", score_section(scores)),
        *([gate_section(gate)] if gate else []),
        ("examples", "Benchmark by benchmark", _examples(own, data, catalogs, scores, judge)),
    ]
    facts = [*([gate_fact(gate)] if gate else []), *_facts(own, scores)]
    write_page(out, f"Evaluation of {Path(str(name)).name}", LEAD, facts, sections, _footer(own[0]))


def _gate(
    before: str | Path | None,
    logs: Sequence[Log],
    data: str | Path | None,
    catalogs: Sequence[str | Path] = (),
    judge: Judge | None = None,
) -> list[Comparison]:
    return [] if before is None else chat_gate(before, [log.path for log in logs], data, catalogs, judge)


def own_logs(run: Path) -> list[Log]:
    """The logs of the model itself below a run: files, and folders that processes shared.

    Raises:
        LogError: If they are of different models.
        ValueError: If there are none.
    """
    found = [path for path in files_of(run, "*.jsonl") if path.name != "quarantine.jsonl"]
    found = [path.parent if (path.parent / RUN).is_file() else path for path in found]
    logs = [read_log(path) for path in dict.fromkeys(found)]
    own = [log for log in logs if log.header.control is None and not log.header.constrained]
    if not own:
        raise ValueError(f"expected a prediction log of the model itself below '{run}', got none")
    first, *others = own
    for log in others:
        if log.header.identity["checkpoint_sha256"] != first.header.identity["checkpoint_sha256"]:
            raise LogError(f"{log.path} and {first.path} are of different checkpoints; a page is about one")
    return own


def read_phases(path: Path) -> list[tuple[str, float]]:
    """(name, seconds) of a run's phases, from a list of ``{name, seconds}`` or an object that holds it as "phases"."""
    value = _json(path) or []
    entries = value["phases"] if isinstance(value, dict) else value
    return [(str(entry["name"]), float(entry["seconds"])) for entry in entries if entry["seconds"]]


def seconds_at_work(path: Path) -> float:
    """Time during which at least one phase of a run was at work; where intervals are not known, the phases' sum."""
    value = _json(path) or []
    entries = [entry for entry in (value["phases"] if isinstance(value, dict) else value) if entry["seconds"]]
    if not all(entry.get("intervals") for entry in entries):
        return sum(float(entry["seconds"]) for entry in entries)
    total, until = 0.0, 0.0
    for begin, end in sorted(interval for entry in entries for interval in entry["intervals"]):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def parameter_counts(weights: Path) -> dict[str, int]:
    """Part of the model -> stored values, from the header of its weights; empty if the file is not there."""
    counts: dict[str, int] = {}
    if not weights.is_file():
        return counts
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():
            parts = name.split(".")
            part = parts[0] if parts[0] == "language_model" else " ".join([parts[1], parts[0].removesuffix("s")])
            counts[part] = counts.get(part, 0) + math.prod(file.get_slice(name).get_shape())
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _facts(logs: Sequence[Log], scores: Scores) -> list[tuple[str, str]]:
    facts = [(f"{sum(len(log.keys) for log in logs):,}", "held-out questions asked")]
    verdicts = [verdict(metric, entry)[1] for metric, entry in scores.items()]
    judged = [met for met in verdicts if met is not None]
    if judged:
        facts.append((f"{sum(judged)} of {len(judged)}", "figures reach what was aimed at"))
    benchmarks = {name for log in logs for name in log.benchmarks}
    if len(benchmarks) > 1:
        facts.append((str(len(benchmarks)), "benchmarks"))
    incomplete = {entry["benchmark"] for entry in scores.values() if not is_complete(entry)}
    if incomplete:
        facts.append((str(len(incomplete)), "benchmarks are incomplete"))
    return facts


def _trained(phases: Sequence[tuple[str, float]], sizes: Mapping[str, int]) -> str:
    times = _bars([(name.replace("_", " "), seconds, clock(seconds)) for name, seconds in phases])
    parts = _bars([(name.replace("_", " "), count, f"{count / 1e6:.2f} M") for name, count in sizes.items()])
    columns = [("Time", times), ("Parameters", parts)]
    shown = "".join(f"<div><h3>{title}</h3>{table}</div>" for title, table in columns if table)
    return f'<div class="two">{shown}</div>' if shown else ""


def _bars(rows: Sequence[tuple[str, float, str]]) -> str:
    if not rows:
        return ""
    largest = max(value for _, value, _ in rows) or 1.0
    cells = (
        f'<tr><td>{escape(name)}</td><td><span class="bar" style="width:{100 * value / largest:.1f}%"></span></td>'
        f"<td>{words}</td></tr>"
        for name, value, words in rows
    )
    return f'<table class="bars">{"".join(cells)}</table>'


def _curves(charts: str) -> str:
    if not charts:
        return ""
    keys = (
        '<p class="soft small"><span class="key" style="background:var(--accent)"></span>training &nbsp; '
        '<span class="key" style="background:var(--second)"></span>validation</p>'
    )
    return keys + charts


def _examples(
    logs: Sequence[Log],
    data: str | Path | None,
    catalogs: Sequence[str | Path],
    scores: Scores,
    judge: Judge | None = None,
) -> str:
    sections = ['<p class="soft small">Right and wrong ones, up to three of each, drawn at random and not by hand.</p>']
    for log in logs:
        for benchmark in benchmarks_of(log, data, catalogs).values():
            benchmark.judge = judge
            sections.append(_benchmark(benchmark, log, scores))
    return "".join(sections)


def _benchmark(benchmark: Benchmark, log: Log, scores: Scores) -> str:
    name = benchmark.name
    check_belongs(log, benchmark)
    profile = Profile(benchmark)
    chosen = choose(profile.over(log.rows(name)))
    try:
        samples = samples_of(benchmark, [row.key for row, _ in chosen])
    except BenchmarkError:  # its files are not here: the log alone says what was asked and answered
        samples = {}
    cards = [card(row, right, samples.get(row.key), benchmark.answer(row)) for row, right in chosen]
    own = {metric: scores[metric] for metric in benchmark.metrics if metric in scores}
    values = ", ".join(f"{metric} {figure(entry['value'])}" for metric, entry in own.items())
    bars = next((found for found in map(part_bars, own.values()) if found), "")
    details = bars + profile.figures()
    shown = f"<details><summary>Parts, lengths, calibration, failures</summary>{details}</details>" if details else ""
    title = f'{escape(name.replace("_", " "))} <span class="soft small">{escape(values)}</span>'
    return f'<h3 id="{escape(name, quote=True)}">{title}</h3>{shown}<div class="cards">{"".join(cards)}</div>'


def _footer(log: Log) -> str:
    identity, info = log.header.identity, log.header.info
    versions = ", ".join(f"{name} {version}" for name, version in identity["versions"].items() if version)
    return (
        f"Checkpoint {identity['checkpoint_sha256'][:12]}, {identity['split']} split, asked on "
        f"{info.get('device', 'an unknown device')} {info.get('started', '')}, "
        f"{identity['session'].get('decoding', '')} decoding in {identity['session'].get('dtype', '')}. {versions}"
    )


def _inputs(log: Log) -> Mapping[str, Any]:
    found: Mapping[str, Any] = log.header.info.get("inputs", {})
    return found


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None
