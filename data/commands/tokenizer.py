"""``python -m data tokenizer``: train a tokenizer on the text of shards, with a model's task tokens added."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from data.records import Record
from data.shards import expand, read_samples
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskTable

HELP = "train a tokenizer on the text of shards, with a model's task tokens added"


def record_texts(record: Record) -> Iterator[str]:
    """Every text that a model reads or writes in a record: text parts and call prompts."""
    for part in record.parts:
        yield part.text or part.prompt


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--data", required=True, nargs="+", help="shards: folders, globs or brace patterns")
    parser.add_argument("--config", required=True, type=Path, help="YAML with model.init_args.generalist.tasks")
    parser.add_argument("--out", required=True, type=Path, help="folder of the tokenizer")
    parser.add_argument("--vocab-size", type=int, default=1024, help="ids of ordinary text (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Train and write the tokenizer."""
    config = yaml.safe_load(arguments.config.read_text())
    table = TaskTable.from_dict(config["model"]["init_args"]["generalist"]["tasks"])
    paths = [path for spec in arguments.data for path in expand(spec)]
    tokenizer = train_tokenizer(_texts(paths), arguments.vocab_size, table)
    save_tokenizer(tokenizer, arguments.out)
    print(f"{arguments.out}: {len(tokenizer)} ids, {len(table)} tasks, from {len(paths)} shards")
    return 0


def _texts(paths: Sequence[str]) -> Iterator[str]:
    for sample in read_samples(paths):
        yield from filter(None, record_texts(sample.record))
