"""A command line's refusal in a few lines: which key, what is wrong with it, and the names that come nearest."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

# Of a key that may hold one of several types jsonargparse tells why each of them does not fit, and the value in full.
_FRAME = re.compile(
    r"^\s*(Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|- Expected a <class 'NoneType'>.*|"
    r"Given value type: .*|Given value: .*)$"
)
_CLASS_PATH = re.compile(r"class_path '?([\w.]+)'?")
_OPTION = re.compile(r"Option '([\w.]+)' is not accepted")
_KEY = re.compile(r"(?:Key|Option) '([\w.]+)' is not expected")
_ARGUMENT = re.compile(r"--([\w.]+)")


class PlainParser(LightningArgumentParser):
    """Lightning's parser without the usage of all its options and the whole value before an error's one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with status 2 and the message on standard error."""
        if not self.exit_on_error or os.environ.get("JSONARGPARSE_DEBUG"):
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        names = [option.lstrip("-") for action in parser._actions for option in action.option_strings]
        prog = parser.prog.replace(" [options]", "")
        sys.stderr.write(f"error: {plain(message, names)}\nEvery argument: {prog} --help\n")
        self.exit(2)


def plain(message: str, names: Iterable[str] = ()) -> str:
    """An error of jsonargparse, shortened to what is wrong, with the nearest names of what is not known.

    Args:
        message: Its text.
        names: The arguments that the parser knows.
    """
    lines = [line for line in message.splitlines() if line.strip()]
    kept = [line for line in lines if not _FRAME.match(line)]
    if len(kept) > 1 or not lines:
        lines = kept
    told, known = [], list(names)
    for line in lines:
        if match := _CLASS_PATH.search(line):
            known = _arguments(match[1]) or known
        found = _OPTION.search(line) or _KEY.search(line)
        if "nrecognized arguments" in line:
            found = _ARGUMENT.search(line)
        told.append(line + (_nearest(found[1], known) if found else ""))
    return "\n".join(told)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(other) for other in near)}?" if near else ""


def _arguments(class_path: str) -> list[str]:
    """Those of a class that is imported already: nothing is imported for the sake of a message."""
    module, _, name = class_path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return list(inspect.signature(found).parameters) if inspect.isclass(found) else []
