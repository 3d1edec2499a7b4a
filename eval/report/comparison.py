"""The page about a comparison: differences with their intervals, parts side by side, and where the runs disagree."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from eval.benchmarks.benchmark import Benchmark, BenchmarkError
from eval.benchmarks.lookup import benchmarks_of
from eval.compare import Comparison
from eval.judges.judge import Judge
from eval.log import Log, read_log
from eval.report.cards import card, samples_of
from eval.report.charts import estimate_bars
from eval.report.frame import Section, figure, write_page

_EACH = 3
_WIDTH, _ROW, _LEFT = 720, 30, 260
LEAD = (
    "Second run minus first on the samples that both answered, paired sample by sample, with 95 % intervals. Scores of "
    "different protocols are never compared."
)


def write_comparison(
    found: Sequence[Comparison],
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    data: str | Path | None = None,
    catalogs: Sequence[str | Path] = (),
    judge: Judge | None = None,
) -> None:
    """Write the page.

    Args:
        found: What :func:`eval.compare.compare_logs` says of the logs.
        paths: The logs, the baseline first.
        out: The page.
        data: Where the benchmarks' files are, if not where the logs say.
        catalogs: Of benchmark rows beside the shipped ones.
        judge: For metrics that need one.
    """
    logs = [read_log(path) for path in paths]
    labels = [found[0].baseline, *dict.fromkeys(item.other for item in found)]
    told = [item.better for item in found]
    facts = [(str(len(found)), "differences"), (str(told.count(True)), "better"), (str(told.count(False)), "worse")]
    sections: list[Section] = [("differences", "Differences", interval_chart(found) + difference_table(found))]
    benchmarks = benchmarks_of(logs[0], data, catalogs)
    for log, label in zip(logs[1:], labels[1:], strict=True):
        own = [item for item in found if item.other == label]
        parts = "".join(_parts(item) for item in own)
        sections.append((f"parts-{_anchor(label)}", f"Parts: {label}", parts))
        shown = []
        for name in dict.fromkeys(item.benchmark for item in own):
            benchmarks[name].judge = judge
            shown.append(_disagreements(benchmarks[name], logs[0], log, labels[0], label))
        sections.append((f"examples-{_anchor(label)}", f"Where the runs disagree: {label}", "".join(shown)))
    title = f"{', '.join(labels[1:])} against {labels[0]}"
    write_page(out, title, LEAD, facts, sections, "; ".join(str(log.path) for log in logs))


def interval_chart(found: Sequence[Comparison]) -> str:
    """The differences with their intervals; empty where none has one."""
    rows = [item for item in found if item.difference is not None and item.difference.low is not None]
    if not rows:
        return ""
    ends = [abs(edge) for item in rows for edge in (item.difference.low, item.difference.high) if edge is not None]  # type: ignore[union-attr]
    reach = max(*ends, 0.01)
    height = _ROW * len(rows) + 24

    def across(value: float) -> float:
        return _LEFT + (value / reach + 1) / 2 * (_WIDTH - _LEFT - 20)

    zero = across(0)
    shapes = [f'<line class="grid" x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{height - 20}"/>']
    for place, item in enumerate(rows):
        number = item.difference
        assert number is not None and number.low is not None and number.high is not None
        middle = _ROW * place + _ROW / 2
        kind = {True: "good", False: "bad", None: "none"}[item.better]
        name = f"{item.metric}: {item.other}" if len({row.other for row in rows}) > 1 else item.metric
        shapes.append(f'<text x="{_LEFT - 12}" y="{middle + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        shapes.append(
            f'<line class="interval {kind}" x1="{across(number.low):.1f}" x2="{across(number.high):.1f}" '
            f'y1="{middle:.1f}" y2="{middle:.1f}"/>'
            f'<circle class="interval {kind}" cx="{across(number.value):.1f}" cy="{middle:.1f}" r="4"/>'
        )
    for value in (-reach, 0.0, reach):
        shapes.append(f'<text x="{across(value):.1f}" y="{height - 4}" text-anchor="middle">{value:+.3g}</text>')
    svg = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="differences">{"".join(shapes)}</svg>'
    return f'<figure class="chart">{svg}</figure>'


def difference_table(found: Sequence[Comparison]) -> str:
    """The differences as a table, with the protocols below it."""
    heads = ("metric", "run", "first", "second", "difference", "95 % interval", "p (Holm)", "n", "rose / fell", "")
    rows = []
    for item in found:
        number = item.difference
        if number is None:
            cells = [item.metric, item.other, "", "", "n/a", "", "", "", "", item.reason]
        else:
            interval = "–" if number.low is None else f"{number.low:+.3f} to {number.high:+.3f}"
            word = {True: "better", False: "worse", None: "not told apart"}[item.better]
            cells = [
                item.metric,
                item.other,
                figure(number.first),
                figure(number.second),
                f"{number.value:+.3f}",
                interval,
                "–" if item.p_holm is None else f"{item.p_holm:.3g}",
                f"{number.n}{'' if item.complete else ', incomplete'}",
                "–" if number.rose is None else f"{number.rose} / {number.fell}",
                word,
            ]
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    titles = "".join(f"<th>{name}</th>" for name in heads)
    protocols = "; ".join(dict.fromkeys(f"{item.metric}: {item.protocol_id}, {item.after.protocol}" for item in found))
    return (
        f'<div class="scroll"><table class="scores"><tr>{titles}</tr>{"".join(rows)}</table></div>'
        f'<p class="soft small">{escape(protocols)}</p>'
    )


def _parts(item: Comparison) -> str:
    shared = [name for name in item.before.parts if name in item.after.parts]
    if not shared:
        return ""
    columns = "".join(
        f"<div><h4>{escape(label)}</h4>{estimate_bars([(name, score.parts[name]) for name in shared])}</div>"
        for label, score in ((item.baseline, item.before), (item.other, item.after))
    )
    return f'<h3>{escape(item.metric)}</h3><div class="two">{columns}</div>'


def _disagreements(benchmark: Benchmark, first: Log, second: Log, baseline: str, other: str) -> str:
    """Pairs of cards, drawn by the hash of their keys: right before and wrong now, and the other way round."""
    name = benchmark.name
    before = {row.key: benchmark.right(row) for row in first.rows(name)}
    after = {row.key: benchmark.right(row) for row in second.rows(name)}
    changed: Mapping[bool, list[str]] = {
        side: [key for key, right in after.items() if right is side and before.get(key) is (not side)]
        for side in (True, False)
    }
    keys = [key for own in changed.values() for key in _drawn(own)]
    if not keys:
        return ""
    try:
        samples = samples_of(benchmark, keys)
    except BenchmarkError:
        samples = {}
    rows = [{row.key: row for row in log.rows(name) if row.key in keys} for log in (first, second)]
    counts = f"{len(changed[True])} became right, {len(changed[False])} became wrong"
    shown = []
    for key in keys:
        pair = "".join(
            f'<div><p class="soft small">{escape(label)}</p>'
            f"{card(own[key], right[key], samples.get(key), benchmark.answer(own[key]))}</div>"
            for label, own, right in ((baseline, rows[0], before), (other, rows[1], after))
        )
        shown.append(f'<div class="two pair">{pair}</div>')
    return f'<h3>{escape(name)} <span class="soft small">{counts}</span></h3>{"".join(shown)}'


def _drawn(keys: Sequence[str]) -> list[str]:
    return sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest())[:_EACH]


def _anchor(label: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in label)
