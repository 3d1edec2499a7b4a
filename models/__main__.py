"""``python -m models COMMAND``: every command is a module of ``models.commands``, imported when it is asked for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = ("tokenizer", "convert", "merge")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit status.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    wanted = [name for name in COMMANDS if given[:1] == [name]] or COMMANDS
    parser = argparse.ArgumentParser(prog="python -m models", description="Prepare and convert models.")
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name in wanted:
        module = import_module(f"models.commands.{name}")
        command = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.configure(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(given)
    return int(args.run(args))


if __name__ == "__main__":
    raise SystemExit(main())
