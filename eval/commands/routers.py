"""``python -m eval routers``: several routers in one table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

HELP = "precision, recall and F1 of several routers in one table"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "files", nargs="+", type=Path, help="logs of the benchmark 'routing', one per router (see predict --markers)"
    )
    parser.add_argument("--data", type=Path, help="data directory, if it is not where the logs say")


def run(options: argparse.Namespace) -> int:
    """Score and print."""
    from eval.routers import compare_routers, routers_table

    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(routers_table(compare_routers(options.files, options.data)))
    return 0
