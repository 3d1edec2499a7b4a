"""``python -m data sample``: a random part of a data set, of given size or share, evenly over tasks if wanted."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from rich.progress import track

from data.index import ShardReader, ensure_index
from data.records import RecordError
from data.shards import ShardError, ShardWriter, expand

HELP = "a random part of a data set, of given size, evenly over tasks if wanted"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("shards", nargs="+", help="folders, globs, brace patterns or addresses")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new shards")
    parser.add_argument("--count", type=int, required=True, help="records to take")
    parser.add_argument("--per-task", action="store_true", help="take so many of every task")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (%(default)s)")
    parser.add_argument("--prefix", default="sample", help="first part of the shards' names (%(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="records per shard (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Choose from the index, and read what was chosen only."""
    try:
        indices = [ensure_index(path) for path in expand(args.shards)]
        places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for shard, index in enumerate(indices):
            for position, entry in enumerate(index.entries):
                places[entry.task if args.per_task else ""].append((shard, position))
        rng = np.random.default_rng(args.seed)
        chosen = []
        for task in sorted(places):
            if len(places[task]) < args.count:
                told = f" of task '{task}'" if args.per_task else ""
                raise ShardError(f"--count: expected at most {len(places[task])} records{told}, got {args.count}")
            chosen += [places[task][place] for place in rng.permutation(len(places[task]))[: args.count].tolist()]
        reader = ShardReader()
        with ShardWriter(args.out, args.prefix, args.samples) as writer:
            for shard, position in track(sorted(chosen), "sampling", transient=True, disable=not sys.stderr.isatty()):
                sample = reader.read(indices[shard], position)
                writer.write(sample.record, sample.members)
    except (ShardError, RecordError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{writer.count} records in {len(writer.paths)} shards in {args.out}")
    return 0
