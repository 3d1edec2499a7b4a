"""``python -m data quickstart``: write the quickstart's shards."""

from __future__ import annotations

import argparse
import sys

from data.quickstart.build import BuildError, build
from data.quickstart.modules import ModuleListError

HELP = "write the quickstart data: real handwritten digits, synthesised speech, the standard library's import graph"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--out", required=True, metavar="DIR", help="where train/, val/, test/ and manifest.json go")
    parser.add_argument("--seed", type=int, default=0, help="everything follows from it (default: 0)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the record counts (default: 1.0)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")


def run(args: argparse.Namespace) -> int:
    """Build, or say what keeps it from building."""
    try:
        manifest = build(args.out, args.seed, args.scale, args.workers)
    except (BuildError, ModuleListError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues where it stopped", file=sys.stderr)
        return 130
    print(manifest)
    return 0
