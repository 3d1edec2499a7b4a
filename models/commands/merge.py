"""``python -m models merge``: a checkpoint without adapters or experts, folded into dense weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from models.adapters.conditioned_experts import SITUATIONS, merge_conditioned_experts
from models.adapters.lora import merge_adapters
from models.checkpoint import CONFIG, CheckpointError, load_checkpoint, save_checkpoint

HELP = "fold the adapters of a checkpoint, or its experts for one situation, into its weights"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("checkpoint", type=Path, help="a checkpoint directory")
    parser.add_argument(
        "--situation",
        choices=sorted(SITUATIONS),
        help="of conditioned experts, leave those of such tokens alone",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the merged checkpoint")


def run(args: argparse.Namespace) -> int:
    """Merge; status 2 if there is nothing to merge, or no checkpoint."""
    try:
        generalist = load_checkpoint(args.checkpoint)
        model, part = generalist.language_model, "lora" if args.situation is None else "conditioned_experts"
        merged = merge_adapters(model) if args.situation is None else merge_conditioned_experts(model, args.situation)
        if not merged:
            raise CheckpointError(f"'{args.checkpoint}': expected {part}, got a language model without any")
        config = yaml.safe_load((args.checkpoint / CONFIG).read_text())
        del config["language_model"][part]
        config |= {"tasks": generalist.tasks.to_dict(), "tokenizer": str(args.checkpoint / "tokenizer")}
        save_checkpoint(generalist, config, args.out)
    except (CheckpointError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {merged} layers merged")
    return 0
