"""The section that says whether answers in words became worse while something else was taught."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from eval.compare import Comparison
from eval.report.comparison import difference_table, interval_chart
from eval.report.frame import Section


def gate_section(found: Sequence[Comparison]) -> Section:
    """Differences of chat benchmarks, with the verdict in front.

    Args:
        found: What :func:`eval.compare.chat_gate` says.
    """
    worse = [item.metric for item in found if item.is_regression]
    tag, verdict = ("bad", f"worse: {', '.join(worse)}") if worse else ("good", "not worse")
    words = (
        f'<p><span class="tag {tag}">{escape(verdict)}</span> than {escape(found[0].baseline)}, '
        f"on {len(found)} figures of questions answered in words. Worse is a fall that chance does not explain, "
        "with the number of figures taken into account (Holm, 5 %).</p>"
    )
    return "chat", "Chat questions, before and after", words + interval_chart(found) + difference_table(found)


def gate_fact(found: Sequence[Comparison]) -> tuple[str, str]:
    """The verdict as a figure of the page's head."""
    worse = sum(item.is_regression for item in found)
    return f"{len(found) - worse} of {len(found)}", "chat figures are not worse than before"
