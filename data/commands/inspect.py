"""``python -m data inspect``: a table of what shards hold, a page of samples, or one record in full."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from html import escape as html_escape
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from data.inspection.contact_sheet import Gallery, histogram, write_contact_sheet
from data.records import Record, RecordError
from data.shards import Sample, ShardError, expand, read_samples

HELP = "a table of what shards hold, a page of samples, or one record in full"
_COLUMNS = ("split", "task", "samples", "turns", "media", "calls", "targets", "KiB", "example")


@dataclass
class Row:
    """What the records of one split and task hold."""

    samples: int = 0
    turns: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    media: Counter[str] = field(default_factory=Counter)
    targets: Counter[str] = field(default_factory=Counter)
    media_bytes: int = 0
    example: str = ""


class Summary:
    """Counts per split and task, and lengths of text and media."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = {}
        self.lengths: dict[str, list[float]] = defaultdict(list)

    def add(self, sample: Sample) -> None:
        """Count a sample."""
        record = sample.record
        row = self.rows.setdefault((record.split, record.task), Row())
        parts = list(record.parts)
        row.samples += 1
        row.turns += sum(message.role == "assistant" for turns in record.conversations for message in turns)
        row.calls.update(part.task for part in parts if part.type == "call")
        row.media.update(media.type for media in record.media.values())
        row.targets.update(target.type for target in record.targets.values())
        row.media_bytes += sum(len(data) for data in sample.members.values())
        row.example = row.example or _example(record)
        self.lengths["words"].append(sum(len((part.text or part.prompt).split()) for part in parts))
        for media in record.media.values():
            if media.type == "audio":
                self.lengths["seconds of audio"].append(media.size[0] / float(media.sample_rate or 1))
            elif media.type == "graph":
                self.lengths["nodes of graphs"].append(media.size[0])
            else:
                self.lengths[f"longer side of {media.type}s"].append(max(media.size[:2]))

    def cells(self) -> list[tuple[str, ...]]:
        """The rows of the table, as text."""
        return [
            (
                split,
                task,
                str(row.samples),
                str(row.turns),
                *(_counts(counter) for counter in (row.media, row.calls, row.targets)),
                f"{row.media_bytes / 1024:.0f}",
                row.example,
            )
            for (split, task), row in sorted(self.rows.items())
        ]

    def table(self) -> Table:
        """For the terminal."""
        table = Table(*_COLUMNS)
        for cells in self.cells():
            table.add_row(*map(escape, cells))
        return table

    def html(self) -> str:
        """For the page, with histograms of the lengths."""
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        body = "".join(f"<tr>{''.join(f'<td>{html_escape(c)}</td>' for c in cells)}</tr>" for cells in self.cells())
        drawn = "".join(histogram(values, name) for name, values in sorted(self.lengths.items()))
        return f"<div class='scroll'><table><tr>{head}</tr>{body}</table></div><div class='histograms'>{drawn}</div>"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("shards", nargs="+", help="folders, globs, brace patterns or addresses")
    parser.add_argument("--key", help="print this record instead")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page of samples")
    parser.add_argument("--each", type=int, default=6, help="samples of every split and task on the page (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of samples (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Print; status 1 if the key is not there, 2 if a shard or record is bad."""
    summary, gallery = Summary(), Gallery(args.each, args.seed)
    try:
        for path in track(expand(args.shards), "reading", transient=True, disable=not sys.stderr.isatty()):
            for sample in read_samples(path):
                if args.key is None:
                    summary.add(sample)
                    gallery.add(sample)
                elif sample.key == args.key:
                    print(json.dumps(json.loads(sample.record.to_json()), indent=2, ensure_ascii=False))
                    for name, data in sample.members.items():
                        print(f"{name}: {len(data)} bytes")
                    return 0
    except (ShardError, RecordError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.key is not None:
        print(f"error: no record '{args.key}' in {args.shards}", file=sys.stderr)
        return 1
    Console().print(summary.table())
    if args.html is not None:
        write_contact_sheet(gallery, summary.html(), args.html)
        print(f"a page of samples: {args.html}")
    return 0


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))


def _example(record: Record) -> str:
    words = []
    for part in (part for message in record.messages[:2] for part in message.content):
        words.append(f"<{part.task}> {part.prompt}" if part.type == "call" else part.text or f"[{part.type}]")
    return " ".join(words)[:100]
