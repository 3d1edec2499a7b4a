"""The constant control of a catalogue row: one reply for all questions, never chosen on answers that are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import islice
from typing import Any

from eval.benchmarks.benchmark import BenchmarkError, says
from eval.benchmarks.metric import Metric
from eval.benchmarks.reader import Reader
from eval.prediction import Prediction

NO_OTHER_ANSWERS = "the benchmark has no other answers to choose it on than those that are scored"
FIXED = "fixed before any answer was seen"
ENOUGH = 20_000
"""Answers that it is chosen on, at most: the first so many."""


class ConstantReply:
    """One reply for all questions.

    A row says ``constant: {say: TEXT}``, which is fixed beforehand, or ``constant: {reader: ARGUMENTS}``: what changes
    in the row's reader so that it reads answers of another split. With neither, the metric's own constant is taken if
    that needs no answers (silence, the whole image), else there is none.

    Args:
        name: Of the row.
        spec: The row's ``constant``.
        metric: The row's.
        reader: Of the other split, where the row names one.

    Raises:
        BenchmarkError: If the entry is malformed.
    """

    def __init__(self, name: str, spec: Mapping[str, Any] | None, metric: Metric, reader: Reader | None) -> None:
        spec = {} if spec is None else spec
        if not isinstance(spec, Mapping) or set(spec) - {"say", "reader"} or len(spec) > 1:
            raise BenchmarkError(f"benchmark '{name}': constant: expected either 'say' or 'reader', got {spec!r}")
        self.name, self.metric, self.reader = name, metric, reader
        self.text = None if "say" not in spec else str(spec["say"])
        self._changes = dict(spec.get("reader") or {})

    @property
    def na(self) -> str:
        """Why there is none; "" where there is one."""
        if self.text is not None or not self.metric.chooses_constant:
            return ""
        if self.reader is None:
            return NO_OTHER_ANSWERS
        missing = self.reader.missing
        return f"it is chosen on the answers of '{missing[0]}', which is not here" if missing else ""

    @property
    def about(self) -> str:
        """Where it comes from, in words."""
        if self.text is not None:
            return f"'{self.text}', {FIXED}"
        if self.reader is None or not self.metric.chooses_constant:
            return FIXED
        changes = ", ".join(f"{name} {value}" for name, value in self._changes.items())
        return f"chosen on at most {ENOUGH} answers of {changes}"

    def __call__(self, prediction: Prediction) -> Prediction:
        """The prediction with this reply.

        Raises:
            BenchmarkError: If there is none, saying why.
        """
        return self._best(prediction)

    @cached_property
    def _best(self) -> Callable[[Prediction], Prediction]:
        if self.na:
            raise BenchmarkError(f"{self.name}: no constant reply: {self.na}")
        text = self.text
        if text is not None:
            return lambda row: says(row, text)
        items = self.reader.items() if self.reader is not None and self.metric.chooses_constant else ()
        references = (
            Prediction(self.name, item.key, reference={"text": item.answer, "calls": [], "meta": dict(item.meta)})
            for item in islice(items, ENOUGH)
        )
        return self.metric.constant(references)
