"""``python -m eval submit``: the file that a benchmark's server takes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from eval.commands.compare import own_log
from eval.commands.list import add_catalog

HELP = "write predictions as the file that a benchmark's server or script takes"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "log", type=Path, help="the model's own prediction log, or the folder that it lies in beside its controls' logs"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        help="the file (.json, .txt; .xlsx, .tsv or .csv for tables), or a folder for one file per benchmark",
    )
    parser.add_argument("--benchmark", help="names separated by commas; all that have a submission by default")
    parser.add_argument("--data", type=Path, help="data directory, if it is not where the log says")
    parser.add_argument(
        "--incomplete", action="store_true", help="write empty answers for samples that were not asked, and count them"
    )
    add_catalog(parser)


def run(options: argparse.Namespace) -> int:
    """Write and say what was written."""
    from eval.submit import submit_log

    names = options.benchmark.split(",") if options.benchmark else ()
    written = submit_log(own_log(options.log), options.out, names, options.data, options.catalog, options.incomplete)
    table = Table(title="Submissions")
    for name in ("benchmark", "file"):
        table.add_column(name, overflow="fold")
    for name in ("rows", "unread", "not asked"):
        table.add_column(name, justify="right")
    for item in written:
        missing = f"[red]{item.missing}[/red]" if item.missing else "0"
        table.add_row(item.benchmark, str(item.path), str(item.rows), str(item.unread), missing)
    Console(width=None if sys.stdout.isatty() else 180).print(table)
    return 0
