"""``python -m models tokenizer``: add a task table's tokens to a pretrained tokenizer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoTokenizer

from routers.tasks import TaskTable
from routers.vocabulary import add_task_tokens

HELP = "add a task table's tokens to a pretrained tokenizer"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("pretrained", help="directory or hub id of the tokenizer")
    parser.add_argument(
        "--tasks", required=True, type=Path, help="YAML with a task table, or with model.init_args.generalist.tasks"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the new tokenizer")
    parser.add_argument("--revision", help="revision on the hub")
    parser.add_argument(
        "--chat-template", type=Path, metavar="JINJA", help="for a tokenizer that has none, as Vicuna's"
    )


def run(args: argparse.Namespace) -> int:
    """Write the tokenizer and print what the language model must be told; status 2 if it cannot be done."""
    value = yaml.safe_load(args.tasks.read_text())
    table = value["model"]["init_args"]["generalist"]["tasks"] if "model" in value else value
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(args.pretrained, revision=args.revision, trust_remote_code=False)
        if args.chat_template is not None:
            tokenizer.chat_template = args.chat_template.read_text()
        if tokenizer.chat_template is None or tokenizer.eos_token_id is None:
            raise ValueError("expected a tokenizer with a chat template and an end-of-turn (eos) token, got none")
        first = len(tokenizer)
        add_task_tokens(tokenizer, TaskTable.from_dict(table))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(args.out))
    count = len(tokenizer) - first
    print(f"{args.out}: {len(tokenizer)} ids; language_model: {{new_tokens: {{first: {first}, count: {count}}}}}")
    return 0
