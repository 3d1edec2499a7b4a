"""Bars and curves of scores as inline HTML and SVG, with their standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from eval.metrics.statistics import Estimate

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 260, 150, 34, 28, 8, 10
MAX_BARS = 40


def estimate_bars(rows: Sequence[tuple[str, Estimate]]) -> str:
    """A bar per estimate, with a whisker of two standard errors to either side, on a scale that begins at 0.

    Args:
        rows: (name, estimate), in order; after :data:`MAX_BARS` the rest is counted, not drawn.
    """
    if not rows:
        return ""
    ends = [value.value + 2 * (value.stderr or 0) for _, value in rows]
    top = max(1.0, *ends) if max(ends) <= 1.5 else max(ends)
    lines = []
    for name, value in rows[:MAX_BARS]:
        width = 100 * max(value.value, 0) / top
        whisker = ""
        if value.stderr is not None:
            low, high = max(value.value - 2 * value.stderr, 0) / top, min((value.value + 2 * value.stderr) / top, 1)
            whisker = f'<i class="whisker" style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>'
        lines.append(
            f'<tr><td>{escape(name)}</td><td><span class="track"><span class="bar" style="width:{width:.1f}%"></span>'
            f"{whisker}</span></td><td>{value.value:.3f} <span class='soft'>n {value.n}</span></td></tr>"
        )
    more = len(rows) - MAX_BARS
    rest = f'<p class="soft small">and {more} more parts in the scores file</p>' if more > 0 else ""
    return f'<table class="bars estimates">{"".join(lines)}</table>{rest}'


def estimate_curve(
    title: str,
    points: Sequence[tuple[float, Estimate]],
    x_label: str,
    *,
    diagonal: bool = False,
    names: Sequence[str] = (),
) -> str:
    """Estimates, all between 0 and 1, over a quantity, with bars of one standard error.

    Args:
        title: Above it.
        points: (place, estimate) in order.
        x_label: What the places mean.
        diagonal: Draw where both are equal; places are then between 0 and 1, too.
        names: What stands below the first and the last place, instead of their numbers.
    """
    low, high = (0.0, 1.0) if diagonal else (min(x for x, _ in points), max(x for x, _ in points))
    span = (high - low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - low) / span * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - y * (HEIGHT - BOTTOM - TOP)

    shapes = []
    for level in (0.0, 0.5, 1.0):
        _, height = place(low, level)
        shapes.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        shapes.append(f'<text x="{LEFT - 5}" y="{height + 3:.1f}" text-anchor="end">{level:g}</text>')
    if diagonal:
        (x0, y0), (x1, y1) = place(0, 0), place(1, 1)
        shapes.append(f'<line class="grid" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>')
    ends = list(names) or [f"{low:.3g}", f"{high:.3g}"]
    shapes.append(f'<text x="{LEFT}" y="{HEIGHT - 15}">{escape(ends[0])}</text>')
    shapes.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 15}" text-anchor="end">{escape(ends[-1])}</text>')
    shapes.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
    middles = [place(x, value.value) for x, value in points]
    if len(middles) > 1:
        shapes.append(f'<polyline class="train" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in middles)}"/>')
    for (x, y), (at, value) in zip(middles, points, strict=True):
        if value.stderr is not None:
            (_, y0), (_, y1) = (place(at, min(max(value.value + s * value.stderr, 0), 1)) for s in (-1, 1))
            shapes.append(f'<line class="error" x1="{x:.1f}" x2="{x:.1f}" y1="{y0:.1f}" y2="{y1:.1f}"/>')
        shapes.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.4"><title>n {value.n}</title></circle>')
    label = escape(title, quote=True)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(shapes)}</svg>'
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{svg}</figure>'
