"""``python -m demonstrations.plots.links RESULT.json OUT.svg``: the four links side by side, as a picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

PANELS = (("mask_giou", "masks, gIoU"), ("edit_right", "edits, share right"))
KINDS = (("", "#2563a8", "the model writes the call"), ("_given", "#9fc1e6", "the reference's call is given"))
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 760, 300, 44, 48, 34, 46
"""Of the picture and of what stands around a panel, in pixels."""


def picture(result: Mapping[str, Any]) -> str:
    """Bars of the means over seeds, with a dot for every seed, as SVG.

    Args:
        result: What :mod:`demonstrations.routing.four_links` measured.
    """
    arms = list(result["arms"])
    panel = (WIDTH - 2 * LEFT - GAP) / len(PANELS)
    shapes = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', *_legend(result)]
    for place, (metric, title) in enumerate(PANELS):
        left = LEFT + place * (panel + GAP)
        shapes += _axes(left, panel, title)
        slot = panel / len(arms)
        for number, arm in enumerate(arms):
            middle = left + (number + 0.5) * slot
            shapes.append(_text(middle, HEIGHT - BOTTOM + 18, arm, "middle"))
            for side, (suffix, colour, _) in enumerate(KINDS):
                values = [runs[metric + suffix] for runs in result["runs"][arm].values()]
                shapes += _bar(middle + (side - 1) * slot * 0.4, slot * 0.37, values, colour)
    constant = result["controls"].get("constant")
    if constant is not None:
        ends = f'x1="{LEFT}" x2="{LEFT + panel:.1f}" y1="{_height(constant):.1f}" y2="{_height(constant):.1f}"'
        shapes.append(f'<line {ends} stroke="#c0392b" stroke-dasharray="5 4"/>')
    words = "Four links between a language model and its heads, compared on masks and edits of digit scenes"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" role="img" aria-label="{words}">{"".join(shapes)}</svg>\n'
    )


def _height(value: float) -> float:
    return TOP + (1 - value) * (HEIGHT - TOP - BOTTOM)


def _text(x: float, y: float, words: str, anchor: str = "start", colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def _axes(left: float, width: float, title: str) -> list[str]:
    shapes = [_text(left, TOP - 10, title)]
    for tenth in range(0, 11, 2):
        y = _height(tenth / 10)
        shapes.append(f'<line x1="{left}" x2="{left + width:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        shapes.append(_text(left - 6, y + 4, f"{tenth / 10:.1f}", "end", "#777"))
    return shapes


def _bar(left: float, width: float, values: Sequence[float], colour: str) -> list[str]:
    top, foot = _height(fmean(values)), _height(0)
    shapes = [f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{foot - top:.1f}" fill="{colour}"/>']
    step = width / (len(values) + 1)
    for number, value in enumerate(values, 1):
        shapes.append(f'<circle cx="{left + number * step:.1f}" cy="{_height(value):.1f}" r="2.4" fill="#111"/>')
    return shapes


def _legend(result: Mapping[str, Any]) -> list[str]:
    shapes, x = [], float(LEFT)
    for _, colour, words in KINDS:
        shapes.append(f'<rect x="{x}" y="8" width="12" height="12" fill="{colour}"/>')
        shapes.append(_text(x + 17, 18, words))
        x += 30 + 6.3 * len(words)
    shapes.append(_text(x, 18, f"dots: {len(result['seeds'])} seeds; dashed: one mask for all", colour="#777"))
    return shapes


def main() -> int:
    """Draw a result."""
    parser = argparse.ArgumentParser(prog="python -m demonstrations.plots.links", description=__doc__)
    parser.add_argument("result", type=Path, help="JSON of the demonstration four_links")
    parser.add_argument("out", type=Path, help="where the SVG is written")
    args = parser.parse_args()
    args.out.write_text(picture(json.loads(args.result.read_text())), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
