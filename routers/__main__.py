"""``python -m routers COMMAND``: every command is a module of ``routers.commands``, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from layers.commands import run_command

COMMANDS = ("describe",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit status.
    """
    return run_command("routers", COMMANDS, "Look at a task table.", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
