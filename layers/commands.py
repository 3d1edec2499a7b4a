"""The command line of a room: every command is a module with ``HELP``, ``configure`` and ``run``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module


def run_command(room: str, names: Sequence[str], description: str, arguments: Sequence[str] | None) -> int:
    """Run a command of ``python -m ROOM``; its module in ``ROOM.commands`` is imported when it is asked for.

    Args:
        room: The room.
        names: Its commands; ``prove-packing`` is the module ``prove_packing``.
        description: What they are for.
        arguments: The command line without the program's name; that of the process by default.

    Returns:
        The exit status.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    wanted = [name for name in names if given[:1] == [name]] or names
    parser = argparse.ArgumentParser(prog=f"python -m {room}", description=description)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name in wanted:
        module = import_module(f"{room}.commands.{name.replace('-', '_')}")
        command = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.configure(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(given)
    return int(args.run(args))
