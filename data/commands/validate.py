"""``python -m data validate``: decode everything in shards and list what is wrong."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, field

from rich.progress import track

from data.media import decode_media, decode_target
from data.records import RecordError
from data.shards import Sample, ShardError, expand, read_samples

HELP = "decode every record, media and target of shards and list what is wrong"
_SHOWN = 50


@dataclass
class Findings:
    """What a check found.

    Args:
        samples: Good samples per (split, task).
        errors: One line per bad shard, record, media or target.
    """

    samples: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("shards", nargs="+", help="folders, globs, brace patterns or addresses")


def run(args: argparse.Namespace) -> int:
    """Check; status 1 if anything is wrong, 2 if there are no shards."""
    try:
        paths = expand(args.shards)
    except ShardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    findings = Findings()
    for path in track(paths, "validating", transient=True, disable=not sys.stderr.isatty()):
        check_shard(path, findings)
    for line in findings.errors[:_SHOWN]:
        print(line, file=sys.stderr)
    if len(findings.errors) > _SHOWN:
        print(f"... and {len(findings.errors) - _SHOWN} more", file=sys.stderr)
    print(f"{len(paths)} shards, {findings.samples.total()} good samples, {len(findings.errors)} errors")
    return 1 if findings.errors else 0


def check_shard(path: str, findings: Findings) -> None:
    """Check one shard; a bad sample does not hide the others."""

    def note(_: str, error: RecordError) -> None:
        findings.errors.append(str(error))

    try:
        for sample in read_samples(path, note):
            problems = _problems(sample)
            findings.errors += [f"{path}: record '{sample.key}': {problem}" for problem in problems]
            if not problems:
                findings.samples[sample.record.split, sample.record.task] += 1
    except ShardError as error:
        findings.errors.append(str(error))


def _problems(sample: Sample) -> list[str]:
    problems = []
    for media in sample.record.media.values():
        try:
            decode_media(media, sample.members[media.file])
        except ValueError as error:
            problems.append(str(error))
    for name, target in sample.record.targets.items():
        try:
            decode_target(target, sample.members[target.file] if target.file else None)
        except ValueError as error:
            problems.append(f"target '{name}': {error}")
    return problems
