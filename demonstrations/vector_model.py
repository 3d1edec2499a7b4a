"""A small language model whose tasks answer with vectors: trained by ``train.py`` on pairs, asked through a session."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.drafts import Draft, Origin
from data.shards import ShardWriter
from demonstrations.text_model import LICENSE, SOURCE, Block, TextModel
from inference.conversation import Conversation
from inference.given import answer_given
from inference.session import Session
from layers.calls import Call, EmbeddingResult
from routers.tasks import TaskTable

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


@dataclass(frozen=True)
class Side:
    """One conversation of a record: what the user says, the task that answers, and what its head learns.

    Args:
        text: What is said.
        task: The task.
        value: Of its ``pair`` target.
    """

    text: str
    task: str
    value: Mapping[str, Any]


@dataclass(frozen=True)
class VectorModel(TextModel):
    """The language model, with heads.

    Args:
        tasks: Task -> the head that answers it; calls say nothing but their name.
        heads: Head -> its class and arguments.
    """

    block: Block = "gemma3_text"
    tasks: Mapping[str, str] = field(default_factory=dict)
    heads: Mapping[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> dict[str, Any]:
        """The task table."""
        return {"tasks": [{"name": name, "head": head, "payload": []} for name, head in self.tasks.items()]}

    def config(self, tokenizer: Path, vocab_size: int) -> dict[str, Any]:
        """Arguments of the Generalist."""
        return {**super().config(tokenizer, vocab_size), "tasks": self.table, "heads": dict(self.heads)}

    def task_table(self) -> TaskTable:
        """For the tokenizer."""
        return TaskTable.from_dict({**TaskTable(()).to_dict(), **self.table})


def made_up_words(count: int, rng: np.random.Generator) -> list[str]:
    """Different words of two or three syllables."""
    words = dict.fromkeys("".join(rng.choice(SYLLABLES, int(rng.integers(2, 4)))) for _ in range(4 * count))
    assert len(words) >= count, "not enough syllables for so many words"
    return list(words)[:count]


def write_sides(directory: Path, prefix: str, records: Iterable[Sequence[Side]], meta: Mapping[str, Any]) -> None:
    """Write records of conversations that belong together, unless they are there."""
    if list(directory.glob(f"{prefix}-*.tar")):
        return
    with ShardWriter(directory, prefix, 5000) as writer:
        for number, sides in enumerate(records):
            draft = Draft(f"{prefix}-{number:06d}", prefix, Origin(SOURCE, LICENSE, "train"), meta=dict(meta))
            for place, side in enumerate(sides):
                if place:
                    draft.next_conversation()
                draft.user(_said(side.text))
                draft.assistant(draft.call(side.task, target=draft.add_target("pair", dict(side.value))))
            writer.write(*draft.finish())


def _said(text: str) -> str:
    """A text behind a colon: without a space before it, its first word would be another token than elsewhere."""
    return f": {text}"


def vectors_of(session: Session, texts: Sequence[str], task: str) -> Tensor:
    """(n, d) the vectors of texts by a task."""
    results = answer_given(session, [Conversation.ask(_said(text)) for text in texts], Call(task, ""))
    return torch.stack([result.vector for result in results if isinstance(result, EmbeddingResult)])
