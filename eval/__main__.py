"""``python -m eval COMMAND``: every command is a module of ``eval.commands``, imported when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from layers.commands import run_command

COMMANDS = ("list", "predict", "score", "submit", "routers", "compare", "report", "sweep", "answer")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name; that of the process by default.

    Returns:
        The exit status: 0, 2 for an error of the user's, 130 when interrupted.
    """
    try:
        return run_command(
            "eval", COMMANDS, "Ask models the questions of benchmarks, and score what they say.", arguments
        )
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
