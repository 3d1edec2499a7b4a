"""``python -m training COMMAND``: every command is a module of ``training.commands``, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from layers.commands import run_command

COMMANDS = ("cache", "prove-packing")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit status.
    """
    return run_command("training", COMMANDS, "Look into what a fit does; `train.py` trains.", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
