"""``python -m training COMMAND``: every command is a module of ``training.commands``, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from layers.commands import run_command

COMMANDS = ("cache",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit status.
    """
    return run_command("training", COMMANDS, "What goes with train.py.", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
