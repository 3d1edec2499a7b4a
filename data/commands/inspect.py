"""``python -m data inspect``: a table of what shards hold, or one record in full."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.records import Record, RecordError
from data.shards import Sample, ShardError, read_samples

HELP = "a table of what shards hold, or one record in full"


@dataclass
class _Row:
    samples: int = 0
    turns: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    media: Counter[str] = field(default_factory=Counter)
    targets: Counter[str] = field(default_factory=Counter)
    media_bytes: int = 0
    example: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("shards", nargs="+", help="folders, globs, brace patterns or addresses")
    parser.add_argument("--key", help="print this record instead")


def run(args: argparse.Namespace) -> int:
    """Print; status 1 if the key is not there, 2 if a shard or record is bad."""
    try:
        samples = read_samples(args.shards)
        if args.key is None:
            Console().print(summarise(samples))
            return 0
        for sample in samples:
            if sample.key == args.key:
                print(json.dumps(json.loads(sample.record.to_json()), indent=2, ensure_ascii=False))
                for name, data in sample.members.items():
                    print(f"{name}: {len(data)} bytes")
                return 0
    except (ShardError, RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"error: no record '{args.key}' in {args.shards}", file=sys.stderr)
    return 1


def summarise(samples: Iterable[Sample]) -> Table:
    """One row per split and task: counts of samples, turns, media, calls and targets, size, and an example."""
    rows: dict[tuple[str, str], _Row] = {}
    for sample in samples:
        record = sample.record
        row = rows.setdefault((record.split, record.task), _Row())
        row.samples += 1
        row.turns += sum(message.role == "assistant" for message in record.messages)
        row.calls.update(part.task for message in record.messages for part in message.content if part.type == "call")
        row.media.update(media.type for media in record.media.values())
        row.targets.update(target.type for target in record.targets.values())
        row.media_bytes += sum(len(data) for data in sample.members.values())
        row.example = row.example or _example(record)
    table = Table("split", "task", "samples", "turns", "media", "calls", "targets", "KiB", "example")
    for (split, task), row in sorted(rows.items()):
        counts = [_counts(row.media), _counts(row.calls), _counts(row.targets)]
        size = f"{row.media_bytes / 1024:.0f}"
        table.add_row(split, task, str(row.samples), str(row.turns), *counts, size, row.example)
    return table


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))


def _example(record: Record) -> str:
    words = []
    for part in (part for message in record.messages[:2] for part in message.content):
        words.append(f"<{part.task}> {part.prompt}" if part.type == "call" else part.text or f"[{part.type}]")
    return escape(" ".join(words)[:100])
