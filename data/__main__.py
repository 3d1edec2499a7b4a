"""``python -m data COMMAND``: every command is a module of ``data.commands``, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from layers.commands import run_command

COMMANDS = (
    "quickstart",
    "convert",
    "write",
    "split",
    "sample",
    "validate",
    "inspect",
    "index",
    "tokenizer",
    "schema",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit status.
    """
    return run_command("data", COMMANDS, "Make, check and look at shards.", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
