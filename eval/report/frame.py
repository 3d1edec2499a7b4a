"""The frame of every page: one file, no script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from data.inspection.drawing import ARROW

Section = tuple[str, str, str]
"""Name of the anchor, title, HTML."""


def write_page(
    out: str | Path, title: str, lead: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section], footer: str
) -> None:
    """Write a page.

    Args:
        out: The file.
        title: Its heading.
        lead: A sentence below it.
        facts: (figure, what it is) boxes below that.
        sections: Those without content are left out.
        footer: At the end.
    """
    shown = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{escape(words)}</a>' for name, words, _ in shown)
    body = "".join(f'<section id="{name}"><h2>{escape(words)}</h2>{text}</section>' for name, words, text in shown)
    boxes = "".join(f"<li><strong>{escape(number)}</strong>{escape(words)}</li>" for number, words in facts)
    style = Path(__file__).with_name("style.css").read_text()
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{escape(title)}</title><style>{style}</style></head>'
        f'<body>{ARROW}<header><h1>{escape(title)}</h1><p class="soft">{escape(lead)}</p><ul class="facts">{boxes}</ul>'
        f"<nav>{links}</nav></header><main>{body}</main><footer>{escape(footer)}</footer></body></html>\n"
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page)


def figure(value: float | None) -> str:
    """A number with three decimals, or a dash."""
    return "–" if value is None else f"{value:.3f}"
