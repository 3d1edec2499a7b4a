"""``python -m eval score``: turn prediction logs into numbers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from eval.commands.list import add_catalog

HELP = "turn prediction logs into numbers, with errors, protocols and controls"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "files", nargs="+", type=Path, help="logs of the model, of its controls, of constrained decoding"
    )
    parser.add_argument("--out", type=Path, help="where to write the scores as JSON")
    parser.add_argument("--data", type=Path, help="data directory, if it is not where the log says")
    add_catalog(parser)


def run(options: argparse.Namespace) -> int:
    """Score, print and write."""
    from eval.score import score_files, score_table, write_scores

    scores = score_files(options.files, options.data, options.catalog)
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(score_table(scores))
    if options.out:
        write_scores(scores, options.out)
        console.print(f"written to {options.out}")
    return 0
