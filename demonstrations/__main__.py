"""``python -m demonstrations [NAME ...]``: run demonstrations, write what they measured, say which claims hold."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from demonstrations.demonstration import Demonstration, Results, timed

HERE = Path(__file__).parent
FOLDERS = {
    "mixtures": ("instruction_diversity", "crosslingual_transfer"),
    "encoders": ("graph_grounding", "dual_speech_encoder", "prompt_gate", "region_tokens"),
    "routing": ("task_tokens", "four_links"),
    "heads": (
        "dense_retrieval",
        "distilled_pairs",
        "domain_experts",
        "inductive_entities",
        "pointing_at_hulls",
        "ground_resolution",
    ),
    "training": ("lora_experts", "balanced_gradients", "two_stage_gate", "graph_matching"),
}
PLACES = {name: folder for folder, names in FOLDERS.items() for name in names}
NAMES = tuple(PLACES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them.

    Returns:
        0 if every claim holds, else 1.
    """
    args = _parser().parse_args(arguments)
    console = Console()
    holding = True
    for name in args.names or NAMES:
        value = _run(name, args, console)
        holding &= value["holds"]
    return 0 if holding else 1


def load(name: str) -> Demonstration:
    """The demonstration of this name."""
    demonstration: Demonstration = import_module(f"demonstrations.{PLACES[name]}.{name}").DEMONSTRATION
    return demonstration


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m demonstrations", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME", help=f"of {', '.join(NAMES)}; all")
    parser.add_argument("--seeds", type=int, help="number of seeds (each demonstration's own)")
    parser.add_argument("--arms", nargs="+", help="these arms alone; the claims then wait for the others")
    parser.add_argument("--out", type=Path, default=Path("runs/demonstrations"), help="results (%(default)s)")
    parser.add_argument("--accept", action="store_true", help="keep the result beside the demonstration")
    return parser


def _run(name: str, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    demonstration = load(name)
    console.print(f"[bold]{name}[/bold] (paper {demonstration.paper}): {demonstration.shows}")
    results = Results.resume(name, HERE / PLACES[name] / f"{name}.py", args.out / f"{name}.json")
    seeds = range(args.seeds or demonstration.seeds)
    folder = args.out / name / results.code  # data and checkpoints of other code are not taken up
    todo = list(results.missing(args.arms or list(demonstration.arms), seeds))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(name, total=len(todo))
        for arm, seed in todo:
            progress.update(bar, description=f"{name}: {arm}, seed {seed}")
            metrics, seconds = timed(demonstration.measure, arm, seed, folder / f"{arm}-{seed}")
            results.add(arm, seed, metrics, seconds)
            results.write(demonstration)
            progress.advance(bar)
    value = results.write(demonstration)
    console.print(_table(demonstration, results))
    for words, holds in value["claims"].items():
        console.print(("[green]holds[/green]: " if holds else "[red]does not hold[/red]: ") + words)
    if args.accept and value["claims"]:  # whether they hold or not: a claim that failed is a result too
        shutil.copy(results.path, HERE / PLACES[name] / f"{name}.json")
    return value


def _table(demonstration: Demonstration, results: Results) -> Table:
    metrics = list(next(iter(next(iter(results.runs.values())).values())))
    table = Table("arm", "what it is", "seeds", *metrics)
    for arm, words in demonstration.arms.items():
        if arm in results.runs:
            values = [f"{results.mean(arm, metric):.3f}" for metric in metrics]
            table.add_row(arm, words, str(len(results.runs[arm])), *values)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
