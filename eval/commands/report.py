"""``python -m eval report``: one self-contained page about a run."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "one self-contained page about a run"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--run", dest="run_dir", required=True, type=Path, help="run directory: scores, logs, curves")
    parser.add_argument("--out", required=True, type=Path, help="the page (.html)")
    parser.add_argument("--data", type=Path, help="data directory, if it is not where the logs say")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint, if it is not where the logs say")


def run(options: argparse.Namespace) -> int:
    """Write the page."""
    from eval.report.page import write_report

    write_report(options.run_dir, options.out, data=options.data, checkpoint=options.checkpoint)
    print(f"written to {options.out}")
    return 0
