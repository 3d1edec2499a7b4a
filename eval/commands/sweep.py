"""``python -m eval sweep``: train towers alike on several tasks and rank them."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

HELP = "train towers alike on several tasks and rank them"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--config", required=True, type=Path, help="the grid, such as configs/sweeps/backbones.yaml")
    parser.add_argument("--out", required=True, type=Path, help="results, towers and page; continued if it exists")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), help="instead of the measured choice")


def run(options: argparse.Namespace) -> int:
    """Run what is not done yet, rank, and write the page."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from eval.sweeps.page import ranking_table, write_page
    from eval.sweeps.ranking import rank
    from training.precision import choose_precision
    from training.sweeps.runner import read_sweep, run_sweep

    sweep = read_sweep(options.config)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("", total=len(sweep.cells()))
        results = run_sweep(
            sweep,
            options.out,
            options.precision or choose_precision().precision,
            lambda name, done: progress.update(bar, description=name, advance=int(done)),
        )
    ranking = rank(results)
    console.print(ranking_table(ranking))
    console.print(f"mean rank correlation between columns: {ranking.agreement():.2f}")
    write_page(ranking, options.out / "page.html", options.config.stem)
    console.print(f"written to {options.out / 'results.json'} and {options.out / 'page.html'}")
    return 0
