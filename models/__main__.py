"""``python -m models COMMAND``: every command is a module of ``models.commands``, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from layers.commands import run_command

COMMANDS = ("tokenizer", "convert", "merge")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit status.
    """
    return run_command("models", COMMANDS, "Prepare and convert models.", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
