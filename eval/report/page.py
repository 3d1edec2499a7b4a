"""The page itself: what was trained, scores against controls, learning curves, examples."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from safetensors import safe_open

from data.inspection.drawing import ARROW
from eval.benchmarks.lookup import benchmarks_of
from eval.controls import CONTROLS
from eval.log import RUN, Log, LogError, read_log
from eval.report.cards import card, choose, samples_of
from eval.report.curves import files_of, read_stages, stage_sections
from eval.score import Scores, check_belongs, verdict
from models.checkpoint import WEIGHTS

CONTROL_WORDS = {
    "blind": "media removed from the prompt",
    "shuffled": "media of another sample",
    "zeroed": "encoded features set to zero; where a call answers, it is made for the model",
    "random_weights": "the same model, untrained",
    "constant": "the best constant answer of the validation split",
}


def write_report(
    run: str | Path, out: str | Path, *, data: str | Path | None = None, checkpoint: str | Path | None = None
) -> None:
    """Write the page about a run.

    Args:
        run: Holds ``scores.json``, prediction logs (``*.jsonl`` at any depth), ``phases.json`` and Lightning's
            ``metrics.csv`` files; whatever but the logs is missing is left out of the page.
        out: The page.
        data: The data directory; the one that the log names by default.
        checkpoint: The checkpoint; the one that the log names by default.

    Raises:
        ValueError: If there is no log of the model itself, or its data is not there.
    """
    run = Path(run)
    logs = own_logs(run)
    log = logs[0]
    scores: Scores = _json(run / "scores.json") or {}
    phases = read_phases(run / "phases.json")
    sizes = parameter_counts(Path(checkpoint or log.header.info.get("checkpoint", "")) / WEIGHTS)
    stages = read_stages(run)
    sections = [
        ("trained", "What was trained, and how long", _trained(phases, sizes)),
        ("scores", "Scores against controls", _scores(scores)),
        ("examples", "Held-out examples", _examples(logs, data, scores)),
        ("curves", "Learning curves", _curves(stage_sections(stages))),
    ]
    shown = [(name, title, body) for name, title, body in sections if body]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in shown)
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{text}</section>' for name, title, text in shown)
    style = Path(__file__).with_name("style.css").read_text()
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1"><title>Switchyard: report of a run</title>'
        f"<style>{style}</style></head><body>{ARROW}<header><h1>One small model that sees, hears, reads graphs, "
        'points, cuts out and draws</h1><p class="soft">Everything below was measured free-running on held-out data: '
        "the model had to write its own task tokens, and a reply that does not parse counts as wrong.</p>"
        f"{_facts(logs, scores, phases, sizes)}<nav>{links}</nav></header><main>{body}</main>"
        f"{_footer(log)}</body></html>\n"
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page)


def read_phases(path: Path) -> list[tuple[str, float]]:
    """(name, seconds) of a run's phases, from a list of ``{name, seconds}`` or an object that holds it as "phases"."""
    value = _json(path) or []
    entries = value["phases"] if isinstance(value, dict) else value
    return [(str(entry["name"]), float(entry["seconds"])) for entry in entries if entry["seconds"]]


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


def clock(seconds: float) -> str:
    """A duration in words: "45 s", "3 min 20 s", "1 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


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


def _facts(logs: Sequence[Log], scores: Scores, phases: Sequence[tuple[str, float]], sizes: Mapping[str, int]) -> str:
    facts = []
    if phases:
        facts.append((clock(sum(seconds for _, seconds in phases)), "from nothing to this page"))
    if sizes:
        facts.append((f"{sum(sizes.values()) / 1e6:.1f} M", "parameters"))
    facts.append((f"{sum(len(log.keys) for log in logs):,}", "held-out questions asked"))
    verdicts = [verdict(metric, entry)[1] for metric, entry in scores.items()]
    judged = [met for met in verdicts if met is not None]
    if judged:
        facts.append((f"{sum(judged)} of {len(judged)}", "figures reach what was aimed at"))
    return '<ul class="facts">' + "".join(f"<li><strong>{a}</strong>{b}</li>" for a, b in facts) + "</ul>"


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


def _scores(scores: Scores) -> str:
    if not scores:
        return ""
    heads = ["metric", "value", "± s.e.", "n", "aimed at", "", *(name.replace("_", " ") for name in CONTROLS)]
    rows = "".join(_score_row(metric, entry) for metric, entry in scores.items())
    titles = "".join(f"<th>{name}</th>" for name in heads)
    words = "; ".join(f"<b>{name.replace('_', ' ')}</b>: {text}" for name, text in CONTROL_WORDS.items())
    details = "".join(_score_details(metric, entry) for metric, entry in scores.items())
    return (
        f'<p class="soft small">Controls: {words}. A dash means that the control was not run or means nothing there; '
        "the reasons are below.</p>"
        f'<div class="scroll"><table class="scores"><tr>{titles}</tr>{rows}</table></div>'
        f"<details><summary>Protocols, parts and reasons</summary><dl>{details}</dl></details>"
    )


def _score_row(metric: str, entry: Mapping[str, Any]) -> str:
    words, met = verdict(metric, entry)
    tag = {True: ("good", "reached"), False: ("bad", "missed"), None: ("", "")}[met]
    n = str(entry["n"]) if entry["n"] == entry["n_expected"] else f"{entry['n']} of {entry['n_expected']}"
    cells = [
        escape(metric),
        _figure(entry["value"]),
        _figure(entry["stderr"]),
        n,
        escape(words),
        f'<span class="tag {tag[0]}">{tag[1]}</span>' if met is not None else "",
        *(_figure(entry["controls"][name]) for name in CONTROLS),
    ]
    styles = ["", ' class="value"', *[""] * (len(cells) - 2)]
    return "<tr>" + "".join(f"<td{s}>{c}</td>" for s, c in zip(styles, cells, strict=True)) + "</tr>"


def _score_details(metric: str, entry: Mapping[str, Any]) -> str:
    lines = [escape(entry["protocol"])]
    if "constrained" in entry:
        lines.append(f"under constrained decoding: {_figure(entry['constrained']['value'])}")
    parts = [f"{name} {_figure(part['value'])} (n {part['n']})" for name, part in entry["parts"].items()]
    if parts:
        lines.append("parts: " + escape("; ".join(parts)))
    reasons = [f"{name.replace('_', ' ')}: {reason}" for name, reason in entry["controls_na"].items()]
    if reasons:
        lines.append("without control " + escape("; ".join(reasons)))
    return f"<dt>{escape(metric)}</dt><dd>{'<br>'.join(lines)}</dd>"


def _curves(charts: str) -> str:
    if not charts:
        return ""
    keys = (
        '<p class="soft small"><span class="key" style="background:var(--accent)"></span>training &nbsp; '
        '<span class="key" style="background:var(--second)"></span>validation</p>'
    )
    return keys + charts


def _examples(logs: Sequence[Log], data: str | Path | None, scores: Scores) -> str:
    of = {name: log for log in logs for name in log.benchmarks}
    benchmarks = {name: item for log in logs for name, item in benchmarks_of(log, data).items()}
    sections = ['<p class="soft small">Right and wrong ones, up to three of each, drawn at random and not by hand.</p>']
    for name, benchmark in benchmarks.items():
        check_belongs(of[name], benchmark)
        chosen = choose(benchmark, of[name].rows(name))
        samples = samples_of(benchmark, [row.key for row, _ in chosen])
        cards = [card(row, right, samples[row.key]) for row, right in chosen]
        values = ", ".join(f"{m} {_figure(scores[m]['value'])}" for m in benchmark.metrics if m in scores)
        title = f'{escape(name.replace("_", " "))} <span class="soft small">{escape(values)}</span>'
        sections.append(f'<h3 id="{name}">{title}</h3><div class="cards">{"".join(cards)}</div>')
    return "".join(sections)


def _footer(log: Log) -> str:
    identity, info = log.header.identity, log.header.info
    versions = ", ".join(f"{name} {version}" for name, version in identity["versions"].items() if version)
    return (
        f"<footer>Checkpoint {escape(identity['checkpoint_sha256'][:12])}, {escape(identity['split'])} split, asked on "
        f"{escape(str(info.get('device', 'an unknown device')))} {escape(str(info.get('started', '')))}, "
        f"{escape(identity['session']['decoding'])} decoding in {escape(identity['session']['dtype'])}. "
        f"{escape(versions)}</footer>"
    )


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None
