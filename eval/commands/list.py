"""``python -m eval list``: the benchmarks, where their files belong, and which are there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

HELP = "the benchmarks of the catalogue, where their files belong, and which are there"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--data", default=Path("benchmark_data"), type=Path, help="holds their folders (%(default)s)")
    add_catalog(parser)


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    from eval.benchmarks.lookup import benchmark_table

    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(benchmark_table(options.data, options.catalog))
    return 0


def add_catalog(parser: argparse.ArgumentParser) -> None:
    """Add the option that names catalogues of one's own."""
    parser.add_argument(
        "--catalog", action="append", default=[], type=Path, help="YAML file or folder of benchmark rows of your own"
    )
