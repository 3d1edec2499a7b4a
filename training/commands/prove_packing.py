"""``python -m training prove-packing``: a packed step beside transformers' eager attention on its samples apart."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from layers.batch import Batch
from training.checks.packing_proof import Proof, prove_packing
from training.cli import read_config
from training.recipe import Recipe

HELP = "compare a packed step with transformers' eager attention on its samples apart"
TYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--config", action="append", required=True, metavar="YAML", help="as for train.py; repeatable")
    parser.add_argument("--step", type=int, default=0, help="whose pack with most samples is taken (%(default)s)")
    parser.add_argument("--dtype", choices=sorted(TYPES), default="float32", help="of the numbers (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="random weights instead of init_from")
    parser.add_argument("settings", nargs="*", help="after --, more settings as train.py takes them")


def run(args: argparse.Namespace) -> int:
    """Compare; status 1 if they differ by more than rounding, 2 if the configuration has nothing to compare."""
    try:
        recipe, data = read_config(args.config, args.settings)
        if not isinstance(recipe, Recipe):
            raise ValueError(f"model.class_path: expected a recipe of a Generalist, got {type(recipe).__name__}")
        if args.fresh:
            recipe.init_from = []
        recipe.configure_model()
        pack = _pack(data, args.step).to(args.device)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    recipe.generalist.to(args.device, TYPES[args.dtype])
    proof = prove_packing(recipe, pack)
    _show(proof, f"{args.dtype} on {args.device}")
    return 0 if proof.holds else 1


def _pack(data: Any, step: int) -> Batch:
    data.prepare_data()
    made, _ = data.train_dataloader().dataset[step]
    found: Batch = max(made.packs, key=lambda pack: len(pack.segment_lengths))
    if len(found.segment_lengths) < 2:
        raise ValueError(f"data.init_args.max_tokens: step {step} has one sample per pack, which proves nothing")
    return found


def _show(proof: Proof, title: str) -> None:
    console = Console()
    contents = ", ".join(f"{count} {name}" for name, count in proof.contents.items())
    table = Table("", "packed, ours", "apart, transformers' eager", "difference", title=f"{contents}; {title}")
    for row in proof.rows:
        colour = "green" if row.difference <= proof.allowed else "red"
        table.add_row(row.what, f"{row.ours:.8g}", f"{row.theirs:.8g}", f"[{colour}]{row.difference:.1e}[/{colour}]")
    console.print(table)
    console.print(f"if attention crossed samples the gradient would differ by {proof.leak:.1e}")
    largest = max(row.difference for row in proof.rows)
    verdict = "[green]equal[/green]" if proof.holds else "[red]not equal[/red]"
    console.print(f"{verdict} up to rounding: {largest:.1e}, allowed {proof.allowed:.0e}")
