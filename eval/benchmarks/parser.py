"""Answer parsers: what a reply says, or why nothing can be read from it. Nothing is ever guessed."""

from __future__ import annotations

from abc import ABC, abstractmethod

from eval.benchmarks.answer import Answer
from eval.prediction import Prediction


class Parser(ABC):
    """Reads an answer from a reply. Constructed from a catalogue row's ``init_args``."""

    @abstractmethod
    def parse(self, row: Prediction) -> Answer:
        """Read a reply that is neither cut nor holds a malformed call; those never reach a parser.

        Args:
            row: ``row.text`` is the reply without its calls, ``row.results`` what heads answered, ``row.meta`` what the
                reader gave (options, sizes).
        """


class Verbatim(Parser):
    """The reply's text without white space around it; an empty one is no answer.

    Args:
        allow_empty: Whether saying nothing is an answer, as in transcription.
    """

    def __init__(self, allow_empty: bool = False) -> None:
        self.allow_empty = allow_empty

    def parse(self, row: Prediction) -> Answer:
        """The text."""
        text = row.text.strip()
        return Answer(text) if text or self.allow_empty else Answer(None, "empty reply")
