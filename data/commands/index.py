"""``python -m data index``: write the offsets of shards beside them, and their lengths for a checkpoint's plan."""

from __future__ import annotations

import argparse
import sys

from rich.progress import track

from data.index import ShardReader, ensure_index, ensure_lengths
from data.shards import ShardError, expand

HELP = "write the offsets of shards beside them (X.tar.idx), and their lengths for a checkpoint's plan"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("shards", nargs="+", help="folders, globs, brace patterns or addresses")
    parser.add_argument("--checkpoint", metavar="DIR", help="also measure rendered lengths under this model's plan")


def run(args: argparse.Namespace) -> int:
    """Index; status 1 if a record does not render, 2 if a shard is bad."""
    plan = None
    if args.checkpoint is not None:
        from models.generalist import Generalist

        plan = Generalist.from_pretrained(args.checkpoint).plan()
    samples = tokens = 0
    errors: list[str] = []
    try:
        paths = expand(args.shards)
        for path in track(paths, "indexing", transient=True, disable=not sys.stderr.isatty()):
            index = ensure_index(path)
            samples += len(index)
            if plan is not None:
                lengths = ensure_lengths(index, plan, ShardReader())
                tokens += sum(lengths.tokens)
                errors += [f"{path}: {reason}" for reason in lengths.errors.values()]
    except ShardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in errors:
        print(line, file=sys.stderr)
    told = f", {tokens} tokens, {len(errors)} that do not render" if plan is not None else ""
    print(f"{len(paths)} shards, {samples} samples{told}")
    return 1 if errors else 0
