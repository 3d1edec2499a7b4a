"""Learning curves from Lightning's CSV logs as inline SVG."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

Line = list[tuple[float, float]]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 260, 132, 38, 18, 8, 8
MAX_POINTS = 160
SUPERSEDED = "superseded"
_INDEX = ("epoch", "step")


@dataclass
class Panel:
    """Curves of one quantity: what training logged, and what validation did."""

    title: str
    train: Line = field(default_factory=list)
    val: Line = field(default_factory=list)


def files_of(run: Path, pattern: str) -> list[Path]:
    """Files of a run that match, at any depth; what later phases set aside is not part of it."""
    found = (path for path in run.rglob(pattern) if path.relative_to(run).parts[0] != SUPERSEDED)
    return sorted(found)


def read_stages(run: Path) -> dict[str, list[Panel]]:
    """Stage (folder below the run) -> panels; of several logs of a stage, such as after a resume, all are joined.

    What is zero throughout, such as the number of bad samples of good data, gets no panel.
    """
    stages: dict[str, dict[str, Panel]] = {}
    for path in sorted(files_of(run, "metrics.csv"), key=_version):
        panels = stages.setdefault(path.relative_to(run).parts[0], {})
        for name, line in read_columns(path).items():
            title, is_validation = _title(name)
            panel = panels.setdefault(title, Panel(title))
            joined = panel.val if is_validation else panel.train
            joined[:] = [point for point in joined if point[0] < line[0][0]] + line
    shown = {
        stage: [panel for panel in panels.values() if any(value for _, value in (*panel.train, *panel.val))]
        for stage, panels in sorted(stages.items())
    }
    return {stage: sorted(panels, key=_importance) for stage, panels in shown.items() if panels}


def read_columns(path: Path) -> dict[str, Line]:
    """Column -> (step, value) points; empty cells and values that are not finite are left out."""
    columns: dict[str, Line] = {}
    with path.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            step = float(row.get("step") or number)
            for name, cell in row.items():
                value = _number(cell)
                if name not in _INDEX and value is not None:
                    columns.setdefault(name, []).append((step, value))
    return columns


def panel_figure(panel: Panel) -> str:
    """One small chart; the last values stand in its title."""
    lines = {name: _thin(line) for name, line in (("train", panel.train), ("val", panel.val)) if line}
    points = [point for line in lines.values() for point in line]
    (x0, x1), (y0, y1) = _range([x for x, _ in points]), _range([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - BOTTOM - TOP)

    shapes = []
    for value in (y0, (y0 + y1) / 2, y1):
        _, height = place(x0, value)
        shapes.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        shapes.append(f'<text x="{LEFT - 5}" y="{height + 3:.1f}" text-anchor="end">{_short(value)}</text>')
    shapes.append(f'<text x="{LEFT}" y="{HEIGHT - 4}">{_short(x0)}</text>')
    shapes.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">step {_short(x1)}</text>')
    for name, line in lines.items():
        places = [place(*point) for point in line]
        if len(places) > 1:
            shapes.append(f'<polyline class="{name}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
        if name == "val" or len(places) == 1:
            shapes += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>' for x, y in places[-40:]]
    last = ", ".join(f"{name} {_short(line[-1][1])}" for name, line in lines.items())
    title = f'{escape(panel.title)} <span class="soft">{escape(last)}</span>'
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(panel.title)}">{"".join(shapes)}</svg>'
    return f'<figure class="chart"><figcaption>{title}</figcaption>{svg}</figure>'


def _title(name: str) -> tuple[str, bool]:
    for prefix in ("val/", "train/"):
        if name.startswith(prefix):
            short = name.removeprefix(prefix).removeprefix("loss_")
            return short.replace("_", " "), prefix == "val/"
    return name.replace("lr-", "learning rate ").replace("_", " "), False


def _importance(panel: Panel) -> tuple[int, str]:
    if panel.title.startswith(("learning rate", "speed/", "data/")) or panel.title == "grad norm":
        return 2, panel.title
    return (0 if panel.title in ("token", "loss") else 1), panel.title


def _thin(line: Line) -> Line:
    """At most :data:`MAX_POINTS` points, each the mean of its neighbours."""
    size = math.ceil(len(line) / MAX_POINTS)
    groups = [line[start : start + size] for start in range(0, len(line), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1))


def _short(value: float) -> str:
    size = abs(value)
    if size >= 1000:
        return f"{value / 1000:.3g}k"
    if size >= 0.001 or size == 0:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _number(cell: str | None) -> float | None:
    try:
        value = float(cell or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _version(path: Path) -> tuple[int, str]:
    digits = path.parent.name.removeprefix("version_")
    return (int(digits) if digits.isdigit() else 0), str(path)


def stage_sections(stages: Mapping[str, Sequence[Panel]]) -> str:
    """All panels, stage by stage."""
    return "".join(
        f'<h3>{escape(stage)}</h3><div class="charts">{"".join(map(panel_figure, panels))}</div>'
        for stage, panels in stages.items()
    )
