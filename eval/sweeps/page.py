"""A sweep as a table for the terminal and as a self-contained page with its figures."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

import numpy as np
from rich.table import Table

from eval.report import page as report
from eval.sweeps.ranking import Ranking

_ROW, _LEFT, _WIDTH = 26, 190, 720


def ranking_table(ranking: Ranking) -> Table:
    """Rank, tower, mean z and the scores."""
    table = Table("rank", "backbone", "pretraining", "mean z", *[f"{task}\n{mode}" for task, mode in ranking.columns])
    for place, (tower, z, scores) in enumerate(
        zip(ranking.towers, ranking.mean_z, ranking.scores, strict=True), start=1
    ):
        table.add_row(str(place), *tower, f"{z:+.2f}", *[f"{score:.3f}" for score in scores])
    return table


def write_page(ranking: Ranking, out: Path, title: str) -> None:
    """Write the page.

    Args:
        ranking: What to show.
        out: The page (.html).
        title: Its heading.
    """
    sections = [
        ("Ranking", "Mean z-score over all tasks and modes: 0 is the average tower.", _bars(ranking)),
        ("Scores", "Coloured by z-score within the column.", _scores(ranking)),
        (
            "Families",
            "Mean z-score by architecture and by pretraining.",
            _families(ranking),
        ),
        (
            "Do the tasks agree?",
            f"Spearman's rank correlation of the columns over towers; mean over pairs {ranking.agreement():.2f}.",
            _correlation(ranking),
        ),
    ]
    body = "".join(
        f"<section><h2>{name}</h2><p class='soft'>{words}</p>{part}</section>" for name, words, part in sections
    )
    style = Path(report.__file__).with_name("style.css").read_text()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{escape(title)}</title><style>{style}</style></head>'
        f"<body><header><h1>{escape(title)}</h1></header><main>{body}</main></body></html>\n"
    )


def _bars(ranking: Ranking) -> str:
    largest = max(float(np.abs(ranking.mean_z).max()), 1e-9)
    middle = _LEFT + (_WIDTH - _LEFT - 60) / 2
    unit = (_WIDTH - _LEFT - 60) / 2 / largest
    rows = [f'<line class="grid" x1="{middle}" x2="{middle}" y1="0" y2="{_ROW * len(ranking.towers)}"/>']
    for row, (tower, z) in enumerate(zip(ranking.towers, ranking.mean_z.tolist(), strict=True)):
        y, width = row * _ROW, abs(z) * unit
        left = middle if z >= 0 else middle - width
        rows.append(f'<text x="0" y="{y + 17}">{escape(", ".join(tower))}</text>')
        colour = "var(--accent)" if z >= 0 else "var(--second)"
        rows.append(f'<rect x="{left:.1f}" y="{y + 5}" width="{width:.1f}" height="16" rx="3" fill="{colour}"/>')
        rows.append(f'<text x="{_WIDTH - 40}" y="{y + 17}">{z:+.2f}</text>')
    height = _ROW * len(ranking.towers)
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="Mean z-score per tower">{"".join(rows)}</svg>'


def _scores(ranking: Ranking) -> str:
    head = "".join(f"<th>{escape(task)}<br>{escape(mode.replace('_', ' '))}</th>" for task, mode in ranking.columns)
    rows = []
    for tower, scores, zs in zip(ranking.towers, ranking.scores, ranking.z, strict=True):
        cells = "".join(
            f'<td style="{_tint(z)}">{score:.3f}</td>' for score, z in zip(scores.tolist(), zs.tolist(), strict=True)
        )
        rows.append(f"<tr><td>{escape(', '.join(tower))}</td>{cells}</tr>")
    return f'<div class="scroll"><table class="scores"><tr><th>tower</th>{head}</tr>{"".join(rows)}</table></div>'


def _families(ranking: Ranking) -> str:
    parts = []
    for place, title in ((0, "backbone"), (1, "pretraining")):
        means = sorted(ranking.family(place).items(), key=lambda item: -item[1])
        rows = "".join(f"<tr><td>{escape(name)}</td><td>{z:+.2f}</td></tr>" for name, z in means)
        parts.append(
            f'<div class="scroll"><table class="scores"><tr><th>{title}</th><th>mean z</th></tr>{rows}</table></div>'
        )
    return f'<div class="two">{"".join(parts)}</div>'


def _correlation(ranking: Ranking) -> str:
    names = [f"{task}, {mode.replace('_', ' ')}" for task, mode in ranking.columns]
    head = "".join(f"<th>{number}</th>" for number in range(1, len(names) + 1))
    rows = []
    for number, (name, values) in enumerate(zip(names, ranking.correlation.tolist(), strict=True), start=1):
        cells = "".join(
            "<td>–</td>" if math.isnan(value) else f'<td style="{_tint(value)}">{value:.2f}</td>' for value in values
        )
        rows.append(f"<tr><td>{number}. {escape(name)}</td>{cells}</tr>")
    return f'<div class="scroll"><table class="scores"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _tint(value: float) -> str:
    """A background from orange (-1.5 and below) through none (0) to green (1.5 and above)."""
    share = round(min(abs(value) / 1.5, 1) * 45)
    return f"background: color-mix(in srgb, var(--{'accent' if value >= 0 else 'second'}) {share}%, transparent)"
