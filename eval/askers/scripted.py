"""Askers without a model: the reference, a constant, and what an earlier log or an answers file says."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.shards import Sample
from eval.askers.asker import Asker, Question
from eval.benchmarks.benchmark import Benchmark, says
from eval.benchmarks.reader import read_json_lines
from eval.log import read_log
from eval.prediction import Prediction, silent

_SPACE = re.compile(r"\s+")


class ScriptedAsker(Asker):
    """What askers without a model share: they look at no media, so no control means anything to them.

    Args:
        name: Stands in the place of a checkpoint's hash.
        decoding: Where the words come from.
    """

    reads_media = False
    controls = frozenset()

    def __init__(self, name: str, decoding: str) -> None:
        self.name, self.decoding = name, decoding

    @property
    def identity(self) -> Mapping[str, Any]:
        """The name."""
        session = {"constrained": False, "dtype": "none", "decoding": self.decoding}
        return {"checkpoint_sha256": self.name, "session": session}

    def settings(self, benchmark: Benchmark) -> Mapping[str, Any]:
        """There are none."""
        return {"decoding": self.decoding}


class GoldAsker(ScriptedAsker):
    """Says the reference; that scores the maximum, or the benchmark is wrong."""

    def __init__(self) -> None:
        super().__init__("gold", "gold")

    def ask(self, benchmark: Benchmark, questions: Sequence[Question]) -> list[Prediction | str]:
        """The references."""
        return [benchmark.gold(silent(benchmark.name, item.sample)) for item in questions]


class ConstantAsker(ScriptedAsker):
    """Says one thing to every question.

    Args:
        text: What; the best constant answer that each benchmark knows of by default.
    """

    def __init__(self, text: str | None = None) -> None:
        super().__init__("constant" if text is None else f"constant: {text}", "constant")
        self.text = text

    def ask(self, benchmark: Benchmark, questions: Sequence[Question]) -> list[Prediction | str]:
        """The constant."""
        rows = [silent(benchmark.name, item.sample) for item in questions]
        return [benchmark.constant(row) if self.text is None else says(row, self.text) for row in rows]


class ReplayAsker(ScriptedAsker):
    """Says again what an earlier log holds: for other references, parsers or protocols than it was made under.

    Args:
        path: The log, of any model.

    Raises:
        LogError: If it is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.log = read_log(path)
        origin = self.log.header.identity
        super().__init__(str(origin["checkpoint_sha256"]), "replay")
        self.path = Path(path)
        self._rows = {name: self.log.rows(name) for name in self.log.benchmarks}
        self._places = {name: {row.key: place for place, row in enumerate(rows)} for name, rows in self._rows.items()}

    @property
    def info(self) -> Mapping[str, Any]:
        """Of which log."""
        return {"replayed": str(self.path)}

    def ask(self, benchmark: Benchmark, questions: Sequence[Question]) -> list[Prediction | str]:
        """The logged replies, with the benchmark's present references."""
        places = self._places.get(benchmark.name, {})
        rows: list[Prediction | str] = []
        for item in questions:
            place, present = places.get(item.sample.key), silent(benchmark.name, item.sample)
            if place is None:
                rows.append("not among the predictions that are replayed")
                continue
            row = self._rows[benchmark.name][place]
            if row.prompt_sha256 == present.prompt_sha256:
                rows.append(replace(row, reference=present.reference))
            else:
                rows.append(f"was asked with another prompt: {row.prompt[:80]!r}, expected {present.prompt[:80]!r}")
        return rows


class AnswersFileAsker(ScriptedAsker):
    """Says what a file of answers in LLaVA's format says: JSON lines with ``question_id``, ``prompt`` and ``text``.

    Lines belong to the question with that id (``meta.question_id``, or the key). Where an id stands in several lines,
    as in MME's files, the one whose prompt holds the question's first line is taken; if that leaves several answers,
    none is.

    Args:
        path: The file.

    Raises:
        BenchmarkError: If it is malformed, naming the line.
        ValueError: If a line lacks the id or the text.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._answers: dict[str, list[tuple[str, str]]] = {}
        digest = hashlib.sha256()
        for number, row in read_json_lines(self.path):
            if "question_id" not in row or not isinstance(row.get("text"), str):
                raise ValueError(f"'{path}' line {number}: expected question_id and text, got {sorted(row)}")
            prompt, text = _SPACE.sub(" ", str(row.get("prompt", ""))), row["text"]
            digest.update(f"{row['question_id']}\0{prompt}\0{text}\0".encode())
            self._answers.setdefault(str(row["question_id"]), []).append((prompt, text))
        super().__init__(digest.hexdigest(), "answers file")

    @property
    def info(self) -> Mapping[str, Any]:
        """Of which file."""
        return {"replayed": str(self.path)}

    def ask(self, benchmark: Benchmark, questions: Sequence[Question]) -> list[Prediction | str]:
        """The answers."""
        rows: list[Prediction | str] = []
        for item in questions:
            row = silent(benchmark.name, item.sample)
            found = self._answers.get(str(row.meta.get("question_id", row.key)), [])
            texts = {text for _, text in found}
            if len(texts) > 1:
                texts = {text for prompt, text in found if _first_line(item.sample) in prompt}
            if len(texts) == 1:
                rows.append(says(row, texts.pop()))
            else:
                rows.append(f"expected one answer to it in '{self.path}', got {len(texts)}")
        return rows


def _first_line(sample: Sample) -> str:
    """Of the question's words."""
    words = (part.text for turn in sample.record.messages for part in turn.content if turn.role == "user" and part.text)
    return _SPACE.sub(" ", next(words, "").split("\n")[0]).strip()
