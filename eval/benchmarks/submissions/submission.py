"""The contract of a submission: from answers to the file that a benchmark's server takes."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from eval.benchmarks.benchmark import BenchmarkError
from eval.benchmarks.metric import Answered
from eval.benchmarks.prompt import LETTERS
from eval.metrics.answers.vqa import normalise_evalai

_META = "meta."


class Submission(ABC):
    """Writes one file, or a folder of them. Constructed from a catalogue row's ``init_args``.

    Attributes:
        endings: Of the file, the usual one first; empty for a folder.
        root: The benchmark's folder; set by its row.
    """

    endings: tuple[str, ...] = (".json",)
    root: Path = Path()

    @abstractmethod
    def write(self, answers: Iterable[Answered], out: Path) -> int:
        """Write the answers.

        Args:
            answers: One per sample of the benchmark, in its order.
            out: The file, replaced as a whole when everything is written.

        Returns:
            How many rows there are.

        Raises:
            BenchmarkError: If an answer cannot be written in this form, naming the sample.
        """


def answer_of(item: Answered) -> str:
    """What was read from the reply as text; what could not be read is empty, which servers count as wrong."""
    return str(item.answer.value) if item.answer.parsed else ""


def _reply_of(item: Answered) -> str:
    """A single value that was read, or where a parser reads several, the words of the reply."""
    if not item.answer.parsed:
        return ""
    return item.answer.value if isinstance(item.answer.value, str) else item.row.text.strip()


def _option_of(item: Answered) -> str:
    """The text of the option whose letter was read."""
    options = [str(option) for option in item.row.meta.get("options", ())]
    letter = answer_of(item)
    return dict(zip(LETTERS, options, strict=False)).get(letter, "")


def _letter_or_reply(item: Answered) -> str:
    """The letter, or where none was read the words, for servers that read replies themselves."""
    return answer_of(item) or ("" if item.row.failed else item.row.text.strip())


def _number(item: Answered) -> int:
    try:
        return int(item.row.key)
    except ValueError:
        raise BenchmarkError(f"sample '{item.row.key}': expected a number for an id") from None


SOURCES: Mapping[str, Callable[[Answered], Any]] = {
    "key": lambda item: item.row.key,
    "number": _number,
    "answer": answer_of,
    "lower": lambda item: answer_of(item).rstrip(".").lower(),
    "evalai": lambda item: normalise_evalai(answer_of(item)),
    "reply": _reply_of,
    "option": _option_of,
    "letter-or-reply": _letter_or_reply,
}
"""What a field of a submission may hold: the sample's id (as text or number), and its answer in several forms."""
IDS = ("key", "number")


def check_source(source: str) -> None:
    """Refuse what is neither one of :data:`SOURCES` nor an entry of the meta (``meta.NAME``).

    Raises:
        BenchmarkError: Naming it.
    """
    if source not in SOURCES and not source.startswith(_META):
        raise BenchmarkError(f"submission: expected one of {sorted(SOURCES)} or {_META}NAME, got '{source}'")


def value_of(item: Answered, source: str) -> Any:
    """The content of a field.

    Raises:
        BenchmarkError: If the meta lacks the entry.
    """
    if source in SOURCES:
        return SOURCES[source](item)
    name = source.removeprefix(_META)
    if name not in item.row.meta:
        raise BenchmarkError(f"sample '{item.row.key}': expected '{name}' in its meta, got {sorted(item.row.meta)}")
    return item.row.meta[name]


@contextmanager
def replacing(out: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A text file that takes its place when it is complete; one that was there stays until then, and if that fails."""
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f"{out.name}.part")
    try:
        with draft.open("w", encoding="utf-8", newline=newline) as stream:
            yield stream
        os.replace(draft, out)
    finally:
        draft.unlink(missing_ok=True)
