"""The contract of whoever answers: questions in, rows of a prediction log out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.media import decode_media
from data.shards import Sample
from eval.benchmarks.benchmark import Benchmark
from eval.prediction import Prediction
from inference.conversation import Conversation


@dataclass(frozen=True)
class Question:
    """A sample as it is asked.

    Args:
        sample: The sample, whose reference is right.
        index: Its place in the benchmark.
        conversation: What is asked; a control may have changed it. Empty for an asker that reads no media.
        media: Name -> encoded media that are given.
    """

    sample: Sample
    index: int
    conversation: Conversation
    media: Mapping[str, bytes] = field(default_factory=dict)


class Asker(ABC):
    """Answers questions. Construction is cheap: weights are loaded by the first question.

    Attributes:
        reads_media: Whether media are decoded for it.
        controls: Controls that it can be put under; "blind" and "shuffled" change the question and need nothing of it.
    """

    reads_media: bool = True
    controls: frozenset[str] = frozenset({"blind", "shuffled"})

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What changes its answers: ``checkpoint_sha256`` and ``session`` at least; see :class:`eval.log.Header`."""

    @property
    def info(self) -> Mapping[str, Any]:
        """What does not, for people: a path, a device."""
        return {}

    def refuses(self, benchmark: Benchmark) -> str:
        """Why a benchmark cannot be asked at all; "" where it can."""
        return ""

    @abstractmethod
    def settings(self, benchmark: Benchmark) -> Mapping[str, Any]:
        """Generation settings that a benchmark's questions are answered with; logged with every row."""

    @abstractmethod
    def ask(self, benchmark: Benchmark, questions: Sequence[Question]) -> list[Prediction | str]:
        """Answer questions.

        Args:
            benchmark: Whose they are.
            questions: At least one.

        Returns:
            One row per question, or why it cannot be asked; that costs no other question its answer.
        """


def question_of(sample: Sample, index: int, given: Sample | None = None) -> Question:
    """A sample as a question, with its media decoded.

    Args:
        sample: The sample.
        index: Its place in the benchmark.
        given: The same sample with the media that are given instead of its own.

    Raises:
        MediaError: If a medium cannot be read or does not decode.
    """
    given = given or sample
    files = {name: given.members[item.file] for name, item in given.record.media.items()}
    media = {name: decode_media(given.record.media[name], data) for name, data in files.items()}
    conversation = Conversation.from_record(given.record, media)
    return Question(sample, index, conversation, {name: files[name] for name in conversation.media})
