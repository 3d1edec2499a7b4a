"""``python -m data convert FORMAT SRC --out DIR``: records from the formats that people hold."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from data.converters import FOLDERS, FORMATS
from data.converters.conversion import ConversionError, Converted, Converter, Tally
from data.records import KEY_PATTERN, SPLITS, RecordError
from data.shards import ShardError, ShardWriter

HELP = "turn a data set of another format into shards of records"
REPORT = "conversion.json"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments; those of a format are read by :func:`format_parser`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "formats:\n" + "\n".join(f"  {name:<14} {words}" for name, words in FORMATS.items())
    parser.add_argument("format", choices=tuple(FORMATS), metavar="FORMAT", help="one of the formats below")
    parser.add_argument(
        "rest", nargs=argparse.REMAINDER, metavar="...", help="see: python -m data convert FORMAT --help"
    )


def format_parser(name: str) -> argparse.ArgumentParser:
    """The command line of a format."""
    parser = argparse.ArgumentParser(prog=f"python -m data convert {name}", description=f"Convert {FORMATS[name]}.")
    parser.add_argument("source", type=Path, metavar="SRC", help="file or folder in the format")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the shards")
    parser.add_argument("--license", required=True, help="SPDX identifier of the data, or a sentence")
    parser.add_argument("--source-name", default=FORMATS[name], help="the records' source (%(default)s)")
    parser.add_argument("--prefix", default=name, help="first part of shard names and keys (%(default)s)")
    parser.add_argument("--split", choices=SPLITS, default="train", help="where the source names none (%(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="records per shard (%(default)s)")
    parser.add_argument("--limit", type=int, help="stop after so many records")
    parser.set_defaults(format=name)
    _module(name).configure(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Convert; status 1 if an item was skipped, 2 if the source is not in the format."""
    console = Console(stderr=True)
    try:
        options = format_parser(args.format).parse_args(args.rest)
        tally = convert(options, console)
    except ModuleNotFoundError as error:
        extra = "video" if error.name == "av" else "convert"
        print(f"error: '{args.format}' needs {error.name}: install the extra '{extra}'", file=sys.stderr)
        return 2
    except (ConversionError, ShardError, RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(tally, console)
    print(f"{tally.converted} records below {options.out}, {tally.skipped.total()} items skipped; see {REPORT} there")
    return 1 if tally.skipped else 0


def convert(args: argparse.Namespace, console: Console) -> Tally:
    """Write the shards, one writer per split, and a report of what was skipped beside them.

    Raises:
        ConversionError: If the source is not in the format, or there are shards of this prefix already.
    """
    if not KEY_PATTERN.match(args.prefix):
        raise ConversionError(f"--prefix: expected [a-z0-9_-]+, got '{args.prefix}'")
    there = sorted(args.out.glob(f"*/{args.prefix}-*.tar"))
    if there:
        raise ConversionError(f"--out '{args.out}': expected no shards '{args.prefix}-*.tar', got {len(there)}")
    if not args.source.exists():
        raise ConversionError(f"expected a file or folder, got '{args.source}', which does not exist")
    tally = Tally()
    writers: dict[str, ShardWriter] = {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("converting", total=args.limit)
            for record, members in _limited(_module(args.format).convert(args.source, args, tally), args.limit):
                if record.split not in writers:
                    writers[record.split] = ShardWriter(args.out / record.split, args.prefix, args.samples)
                writers[record.split].write(record, members)
                tally.converted += 1
                progress.advance(bar)
        for writer in writers.values():
            writer.close()
    except BaseException:
        for writer in writers.values():  # complete shards stay, and no half one
            writer.discard()
        raise
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / REPORT).write_text(json.dumps({"format": args.format, **tally.to_json()}, indent=1) + "\n")
    return tally


def show(tally: Tally, console: Console) -> None:
    """Print what was skipped, and which fields nobody read."""
    if tally.skipped:
        table = Table("skipped because", "items", "such as", title="skipped")
        for reason, count in tally.skipped.most_common():
            table.add_row(reason, str(count), ", ".join(tally.examples[reason]))
        console.print(table)
    if tally.unknown:
        table = Table("field", "times", title="fields that are not read")
        for name, count in tally.unknown.most_common():
            table.add_row(name, str(count))
        console.print(table)


def _module(name: str) -> Converter:
    folder = f"{FOLDERS[name]}." if name in FOLDERS else ""
    return cast(Converter, import_module(f"data.converters.{folder}{name.replace('-', '_')}"))


def _limited(records: Iterator[Converted], limit: int | None) -> Iterator[Converted]:
    for number, item in enumerate(records):
        if limit is not None and number >= limit:
            return
        yield item
