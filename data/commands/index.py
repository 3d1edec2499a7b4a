"""``python -m data index``: write the offsets of shards beside them, and their lengths for a checkpoint's plan."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from rich.progress import track

from data.index import ShardIndex, ShardReader, StaleIndexError, ensure_index, ensure_lengths, verify_index
from data.shards import ShardError, expand
from models.plan import BatchPlan

HELP = "write the offsets of shards beside them (X.tar.idx), and their lengths for a checkpoint's plan"
_PARTS_PER_WORKER = 8


@dataclass
class Indexed:
    """What a shard's index holds.

    Args:
        samples: Samples.
        tokens: Of all of them, under the plan.
        errors: What is wrong, a line each.
    """

    samples: int
    tokens: int
    errors: list[str]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("shards", nargs="+", help="folders, globs, brace patterns or addresses")
    parser.add_argument("--verify", action="store_true", help="also compare all bytes with those that were indexed")
    parser.add_argument("--checkpoint", metavar="DIR", help="also measure rendered lengths under this model's plan")
    parser.add_argument("--workers", type=int, default=1, help="processes, for many shards (%(default)s)")


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
        every = each_indexed(paths, plan, args.verify, args.workers)
        for one in track(every, "indexing", len(paths), transient=True, disable=not sys.stderr.isatty()):
            samples += one.samples
            tokens += one.tokens
            errors += one.errors
    except ShardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in errors:
        print(line, file=sys.stderr)
    told = f", {tokens} tokens" if plan is not None else ""
    print(f"{len(paths)} shards, {samples} samples{told}, {len(errors)} problems")
    return 1 if errors else 0


def each_indexed(paths: Sequence[str], plan: BatchPlan | None, verify: bool, workers: int) -> Iterator[Indexed]:
    """What :func:`index_shard` says of every shard, in order; so many processes do it."""
    index = partial(index_shard, plan=plan, verify=verify)
    if workers <= 1 or len(paths) == 1:
        yield from map(index, paths)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    chunk = max(1, len(paths) // (workers * _PARTS_PER_WORKER))  # the plan goes to a worker once per chunk
    with ProcessPoolExecutor(min(workers, len(paths)), context, torch.set_num_threads, (1,)) as pool:
        yield from pool.map(index, paths, chunksize=chunk)


def index_shard(path: str, plan: BatchPlan | None, verify: bool) -> Indexed:
    """Make what is missing beside a shard.

    Args:
        path: The shard.
        plan: Measure lengths under it; None measures none.
        verify: Whether to compare all bytes with the checksum.

    Raises:
        ShardError: If it cannot be opened.
    """
    index = ensure_index(path)
    errors = [f"{path}: '{key}': {reason}" if key else f"{path}: {reason}" for key, reason in index.problems]
    if verify:
        errors += _changed(index)
    if plan is None:
        return Indexed(len(index), 0, errors)
    lengths = ensure_lengths(index, plan, ShardReader())
    return Indexed(len(index), sum(lengths.tokens), errors + [f"{path}: {told}" for told in lengths.errors.values()])


def _changed(index: ShardIndex) -> list[str]:
    try:
        verify_index(index)
    except StaleIndexError as error:
        return [str(error)]
    return []
