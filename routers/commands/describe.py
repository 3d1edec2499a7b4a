"""``python -m routers describe``: a task table as a page of documentation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from routers.describe import describe
from routers.tasks import TaskTable

HELP = "write the documentation of a task table"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "tasks",
        type=Path,
        help="YAML with a task table (a checkpoint's tasks.yaml), or with model.init_args.generalist.tasks",
    )
    parser.add_argument("--title", help="of the page (the file's path)")
    parser.add_argument("--out", type=Path, help="the page (.md); printed if it is not given")


def run(args: argparse.Namespace) -> int:
    """Write the page; status 2 if there is no such table."""
    try:
        page = describe(read_table(args.tasks), args.title or str(args.tasks))
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        print(f"error: {args.tasks}: expected a task table, got {error}", file=sys.stderr)
        return 2
    if args.out is None:
        print(page, end="")
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(page, encoding="utf-8")
    return 0


def read_table(path: Path) -> TaskTable:
    """The task table of a file: a table, or a training configuration that holds one."""
    value = yaml.safe_load(path.read_text(encoding="utf-8"))
    return TaskTable.from_dict(value["model"]["init_args"]["generalist"]["tasks"] if "model" in value else value)
