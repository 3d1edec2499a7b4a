"""``python -m eval answer``: how programs of other environments ask a checkpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "questions as JSON lines on standard input, replies as JSON lines on standard output"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint directory")
    parser.add_argument("--batch-size", type=int, default=16, help="conversations decoded together (%(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the parameters")
    parser.add_argument("--device", help="such as cpu or cuda; the GPU if there is one by default")


def run(options: argparse.Namespace) -> int:
    """Answer groups of lines, each ended by an empty line, until the input ends."""
    from eval.askers.session import Decoding, SessionAsker
    from eval.neighbours.answering import answer_lines

    decoding = Decoding(batch_size=options.batch_size, dtype=options.dtype, device=options.device)
    answer_lines(SessionAsker(options.checkpoint, decoding).session, sys.stdin, sys.stdout)
    return 0
