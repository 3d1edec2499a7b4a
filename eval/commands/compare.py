"""``python -m eval compare``: paired differences between runs in the same protocol."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from eval.commands.list import add_catalog
from eval.commands.score import add_judge, chosen_judge

HELP = "paired differences between runs, with confidence intervals; different protocols are refused"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "files", nargs="+", type=Path, help="logs, or folders with a model's own log; all are compared with the first"
    )
    parser.add_argument("--out", type=Path, help="where to write the differences: .json, or a page (.html)")
    parser.add_argument("--data", type=Path, help="data directory, if it is not where the logs say")
    parser.add_argument(
        "--gate",
        action="store_true",
        help="compare answers in words alone, and end with status 1 if one of their figures is worse beyond chance",
    )
    add_catalog(parser)
    add_judge(parser)


def run(options: argparse.Namespace) -> int:
    """Compare, print and write."""
    from eval.compare import chat_gate, compare_logs, comparison_table, write_comparisons

    files = [own_log(path) for path in options.files]
    judge = chosen_judge(options, files[0])
    given = (options.data, options.catalog, judge)
    found = chat_gate(files[0], files[1:], *given) if options.gate else compare_logs(files, *given)
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(comparison_table(found))
    if options.out:
        if options.out.suffix == ".html":
            from eval.report.comparison import write_comparison

            write_comparison(found, files, options.out, data=options.data, catalogs=options.catalog, judge=judge)
        else:
            write_comparisons(found, options.out)
        console.print(f"written to {options.out}")
    worse = [item.metric for item in found if item.is_regression] if options.gate else []
    if worse:
        console.print(f"[red]worse: {', '.join(worse)}[/red]")
    return int(bool(worse))


def own_log(path: Path) -> Path:
    """Of a folder of logs, the model's own.

    Raises:
        LogError: If there is none, or several.
    """
    from eval.log import LogError, find_logs, read_log

    found = find_logs(path)
    if len(found) > 1:
        headers = {log: read_log(log).header for log in found}
        found = [log for log, header in headers.items() if header.control is None and not header.constrained]
    if len(found) != 1:
        raise LogError(f"{path}: expected one log of the model itself among {len(found)}; name it")
    return found[0]
