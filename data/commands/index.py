"""``python -m data index``: write the offsets of shards beside them, and their lengths for a checkpoint's plan."""

from __future__ import annotations

import argparse
import sys

from rich.progress import track

from data.index import ShardIndex, ShardReader, StaleIndexError, ensure_index, ensure_lengths, verify_index
from data.shards import ShardError, expand

HELP = "write the offsets of shards beside them (X.tar.idx), and their lengths for a checkpoint's plan"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("shards", nargs="+", help="folders, globs, brace patterns or addresses")
    parser.add_argument("--verify", action="store_true", help="also compare all bytes with those that were indexed")
    parser.add_argument("--checkpoint", metavar="DIR", help="also measure rendered lengths under this model's plan")


def run(args: argparse.Namespace) -> int:
    """Index; status 1 if a sample is damaged or does not render, or bytes have changed, 2 if there are no shards."""
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
            errors += [f"{path}: '{key}': {reason}" if key else f"{path}: {reason}" for key, reason in index.problems]
            if args.verify:
                errors += _changed(index)
            if plan is not None:
                lengths = ensure_lengths(index, plan, ShardReader())
                tokens += sum(lengths.tokens)
                errors += [f"{path}: {reason}" for reason in lengths.errors.values()]
    except ShardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in errors:
        print(line, file=sys.stderr)
    told = f", {tokens} tokens" if plan is not None else ""
    print(f"{len(paths)} shards, {samples} samples{told}, {len(errors)} problems")
    return 1 if errors else 0


def _changed(index: ShardIndex) -> list[str]:
    try:
        verify_index(index)
    except StaleIndexError as error:
        return [str(error)]
    return []
