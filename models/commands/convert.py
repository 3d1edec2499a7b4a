"""``python -m models convert``: a checkpoint of others to ours, or back."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from models.checkpoint import CheckpointError, load_checkpoint
from models.foreign.conversion import write
from routers.tasks import TaskTable

HELP = "make a checkpoint of others ours, or write ours in their format"
SOURCES = ("graphgpt", "llava", "llava_original", "qwen2_audio", "wavllm")  # modules of models.foreign
BESIDE = {
    "graphgpt": "tower",
    "llava_original": "tower",
    "wavllm": "tokenizer",
}  # what a source lacks; these go to ours alone


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "format",
        choices=sorted(SOURCES),
        help="llava: LLaVA-1.5, -NeXT and -OneVision of transformers; llava_original: LLaVA-1.5 of its authors; "
        "wavllm: fairseq's .pt; graphgpt: GraphGPT of its authors; the last three to ours alone",
    )
    parser.add_argument("source", help="their directory or file")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--tokenizer", help="directory of the tokenizer, for wavllm, whose file has none")
    parser.add_argument(
        "--tower", help="directory of the vision tower, for llava_original; of the grounding stage, for graphgpt"
    )
    parser.add_argument("--tasks", type=Path, help="YAML of a task table whose tokens the vocabulary gets (none)")
    parser.add_argument(
        "--back",
        type=Path,
        metavar="CHECKPOINT",
        help="write this checkpoint of ours, once converted from SOURCE, as theirs",
    )


def run(args: argparse.Namespace) -> int:
    """Convert; status 2 if it cannot be done, and nothing is written then."""
    module: Any = import_module(f"models.foreign.{args.format}")
    try:
        needed = BESIDE.get(args.format)
        if needed is not None and args.back is not None:
            raise CheckpointError(f"{args.format}: expected no --back, since there is no way back")
        for option in ("tokenizer", "tower"):
            if option != needed and getattr(args, option) is not None:
                raise CheckpointError(f"{args.format}: expected no --{option}, since the source has its own")
        if args.back is not None:
            module.export(load_checkpoint(args.back), args.source, args.out)
        else:
            table = yaml.safe_load(args.tasks.read_text()) if args.tasks is not None else {"tasks": []}
            beside = () if needed is None else (getattr(args, needed),)
            write(module.load(args.source, *beside), TaskTable.from_dict(table), args.out)
    except (CheckpointError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(args.out)
    return 0
