"""``python -m data validate``: decode everything in shards, in parallel, and list what is wrong."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import track
from rich.table import Table

from data.checks import problems_of
from data.shards import ShardError, expand, read_samples
from routers.tasks import TaskTable

HELP = "decode every record, media and target of shards and list what is wrong"
_SHOWN = 50


@dataclass
class Findings:
    """What a check found.

    Args:
        samples: Good samples per (split, task).
        errors: One line per bad shard, record, media or target.
        bad: Bad samples per (split, task); records that do not parse have neither.
    """

    samples: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    bad: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, other: Findings) -> None:
        """Add another shard's."""
        self.samples += other.samples
        self.bad += other.bad
        self.errors += other.errors

    def to_json(self) -> dict[str, Any]:
        """As ``--report`` writes it."""
        kinds = sorted(set(self.samples) | set(self.bad))
        rows = [
            {"split": split, "task": task, "good": self.samples[split, task], "bad": self.bad[split, task]}
            for split, task in kinds
        ]
        return {"samples": rows, "errors": self.errors}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("shards", nargs="+", help="folders, globs, brace patterns or addresses")
    parser.add_argument(
        "--tasks", type=Path, metavar="YAML", help="task table or model configuration with the known tasks"
    )
    parser.add_argument("--report", type=Path, metavar="JSON", help="write counts and every error there")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Check; status 1 if anything is wrong, 2 if there are no shards or no such tasks."""
    try:
        paths = expand(args.shards)
        tasks = None if args.tasks is None else read_tasks(args.tasks)
    except (ShardError, ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    findings = Findings()
    console = Console(stderr=True)
    for one in track(
        _checked(paths, tasks, args.workers),
        "validating",
        total=len(paths),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ):
        findings.add(one)
    for line in findings.errors[:_SHOWN]:
        print(line, file=sys.stderr)
    if len(findings.errors) > _SHOWN:
        print(f"... and {len(findings.errors) - _SHOWN} more", file=sys.stderr)
    Console().print(_table(findings))
    print(f"{len(paths)} shards, {findings.samples.total()} good samples, {len(findings.errors)} errors")
    if args.report is not None:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        args.report.write_text(json.dumps({"shards": paths, **findings.to_json()}, indent=1) + "\n")
    return 1 if findings.errors else 0


def check_shard(path: str, findings: Findings, tasks: Collection[str] | None = None) -> None:
    """Check one shard; a bad sample does not hide the others.

    Args:
        path: The shard.
        findings: Takes what is found.
        tasks: Tasks that calls may name; None takes any.
    """

    def note(_: str, __: str, error: ValueError) -> None:
        findings.errors.append(str(error))

    for sample in read_samples(path, note):
        problems = problems_of(sample, tasks)
        findings.errors += [f"{path}: record '{sample.key}': {problem}" for problem in problems]
        counter = findings.bad if problems else findings.samples
        counter[sample.record.split, sample.record.task] += 1


def read_tasks(path: Path) -> list[str]:
    """The names in a task table, or in the one of a model's configuration.

    Raises:
        ValueError: If the file holds neither.
    """
    value = yaml.safe_load(path.read_text())
    for name in ("model", "init_args", "generalist", "tasks"):
        if isinstance(value, dict) and name in value and not isinstance(value[name], list):
            value = value[name]
    if not isinstance(value, dict) or not isinstance(value.get("tasks"), list):
        raise ValueError(f"'{path}': expected a task table, or a configuration with model.init_args.generalist.tasks")
    return [task.name for task in TaskTable.from_dict(value)]


def _checked(paths: Sequence[str], tasks: Collection[str] | None, workers: int) -> Iterator[Findings]:
    if workers <= 1 or len(paths) == 1:
        for path in paths:
            yield _check(path, tasks)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(min(workers, len(paths)), context, torch.set_num_threads, (1,)) as pool:
        yield from pool.map(_check, paths, [tasks] * len(paths))


def _check(path: str, tasks: Collection[str] | None) -> Findings:
    findings = Findings()
    check_shard(path, findings, tasks)
    return findings


def _table(findings: Findings) -> Table:
    table = Table("split", "task", "good", "bad")
    for row in findings.to_json()["samples"]:
        table.add_row(row["split"], row["task"], str(row["good"]), str(row["bad"]))
    return table
