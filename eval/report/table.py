"""The table of scores against their controls, with protocols, parts and reasons below it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from eval.controls import CONTROLS
from eval.report.frame import figure
from eval.score import Scores, verdict

CONTROL_WORDS = {
    "blind": "media removed from the prompt",
    "shuffled": "media of another sample",
    "zeroed": "encoded features set to zero; where a call answers, it is made for the model",
    "random_weights": "the same model, untrained; of pretrained parts the values in random order",
    "constant": "the best constant answer, never chosen on the answers that are scored",
}


def score_section(scores: Scores) -> str:
    """The table; empty without scores."""
    if not scores:
        return ""
    heads = ["metric", "value", "± s.e.", "n", "unparsed", "aimed at", ""]
    heads += [name.replace("_", " ") for name in CONTROLS]
    rows = "".join(_row(metric, entry) for metric, entry in scores.items())
    titles = "".join(f"<th>{name}</th>" for name in heads)
    words = "; ".join(f"<b>{name.replace('_', ' ')}</b>: {text}" for name, text in CONTROL_WORDS.items())
    details = "".join(_details(metric, entry) for metric, entry in scores.items())
    return (
        f'<p class="soft small">Controls: {words}. A dash means that the control was not run or means nothing there; '
        "the reasons are below.</p>"
        f'<div class="scroll"><table class="scores"><tr>{titles}</tr>{rows}</table></div>'
        f"<details><summary>Protocols, parts and reasons</summary><dl>{details}</dl></details>"
    )


def is_complete(entry: Mapping[str, Any]) -> bool:
    """Whether all samples of a score's benchmark were asked; a metric may rest on some of them."""
    return bool(entry.get("complete", entry["n"] == entry["n_expected"]))


def _row(metric: str, entry: Mapping[str, Any]) -> str:
    words, met = verdict(metric, entry)
    tag = {True: ("good", "reached"), False: ("bad", "missed"), None: ("", "")}[met]
    n = str(entry["n"]) if is_complete(entry) else f'<span class="tag bad">{entry["n"]} of {entry["n_expected"]}</span>'
    value = "n/a" if entry["value"] is None else figure(entry["value"])
    if "meaningless" in entry:
        value = f'<span class="tag bad" title="{escape(entry["meaningless"], quote=True)}">{value} ?</span>'
    unparsed = entry.get("parse_failure", {}).get("value") if isinstance(entry.get("parse_failure"), Mapping) else None
    cells = [
        escape(metric),
        value,
        figure(entry["stderr"]),
        n,
        figure(unparsed),
        escape(words),
        f'<span class="tag {tag[0]}">{tag[1]}</span>' if met is not None else "",
        *(figure(entry["controls"][name]) for name in CONTROLS),
    ]
    styles = ["", ' class="value"', *[""] * (len(cells) - 2)]
    return "<tr>" + "".join(f"<td{s}>{c}</td>" for s, c in zip(styles, cells, strict=True)) + "</tr>"


def _details(metric: str, entry: Mapping[str, Any]) -> str:
    lines = [escape(": ".join(filter(None, [entry.get("protocol_id", ""), entry["protocol"]])))]
    if entry["value"] is None:
        lines.append(f"n/a: {escape(str(entry.get('na', '')))}")
    if "meaningless" in entry:
        lines.append(escape(entry["meaningless"]))
    if entry.get("judge"):
        lines.append(f"judged by {escape(entry['judge'])}")
    if "routing" in entry:
        rates = (
            f"{name} {figure(rate['value'])} ± {figure(rate['stderr'])}" for name, rate in entry["routing"].items()
        )
        lines.append(f"routing: {', '.join(rates)}")
    if "constrained" in entry:
        lines.append(f"under constrained decoding: {figure(entry['constrained']['value'])}")
    parts = [f"{name} {figure(part['value'])} (n {part['n']})" for name, part in entry["parts"].items()]
    if parts:
        lines.append("parts: " + escape("; ".join(parts)))
    reasons = [f"{name.replace('_', ' ')}: {reason}" for name, reason in entry["controls_na"].items()]
    if reasons:
        lines.append("without control " + escape("; ".join(reasons)))
    return f"<dt>{escape(metric)}</dt><dd>{'<br>'.join(lines)}</dd>"
