"""``python -m data split``: train, val and test of one data set, with related records on one side."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.progress import track

from data.records import SPLITS, Record, RecordError
from data.shards import ShardError, ShardWriter, expand, read_samples

HELP = "train, val and test of one data set, with related records on one side"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("shards", nargs="+", help="folders, globs, brace patterns or addresses")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the new shards, one below per split"
    )
    parser.add_argument("--shares", default="train=0.9,val=0.05,test=0.05", help="share of each split (%(default)s)")
    parser.add_argument(
        "--by", metavar="FIELD", help="keep records together whose meta agrees in this field, such as speaker"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the assignment (%(default)s)")
    parser.add_argument("--prefix", default="records", help="first part of the shards' names (%(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="records per shard (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Split; a record's side depends on the seed and on its key (or its field) alone, whatever else there is."""
    try:
        shares = parse_shares(args.shares)
        writers: dict[str, ShardWriter] = {}
        counts: Counter[str] = Counter()
        for path in track(expand(args.shards), "splitting", transient=True, disable=not sys.stderr.isatty()):
            for sample in read_samples(path):
                side = side_of(group_of(sample.record, args.by), shares, args.seed)
                if side not in writers:
                    writers[side] = ShardWriter(args.out / side, args.prefix, args.samples)
                writers[side].write(replace(sample.record, split=side), sample.members)
                counts[side] += 1
        for writer in writers.values():
            writer.close()
    except (ShardError, RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{side}: {counts[side]}" for side in shares))
    return 0


def parse_shares(text: str) -> dict[str, float]:
    """``train=0.9,val=0.1`` as a dictionary whose shares add up to 1.

    Raises:
        ShardError: If it is not of this form.
    """
    try:
        shares = {name: float(share) for name, share in (item.split("=") for item in text.split(","))}
    except ValueError:
        raise ShardError(f"--shares: expected SPLIT=SHARE,..., got '{text}'") from None
    if not set(shares) <= set(SPLITS) or min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ShardError(f"--shares: expected shares of {SPLITS} that add up to 1, got '{text}'")
    return shares


def group_of(record: Record, field: str | None) -> str:
    """What decides a record's side: its key, or a field of its meta.

    Raises:
        ShardError: If the record lacks the field.
    """
    if field is None:
        return record.key
    if field not in record.meta:
        raise ShardError(
            f"record '{record.key}': --by: expected the field '{field}' in meta, got {sorted(record.meta)}"
        )
    return str(record.meta[field])


def side_of(group: str, shares: Mapping[str, float], seed: int) -> str:
    """The split of a group, by a hash."""
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    for side, share in shares.items():
        place -= share
        if place < 0:
            return side
    return list(shares)[-1]
