"""The contract of a benchmark.

A benchmark is tied to no format of data: it yields :class:`data.shards.Sample` objects, from wherever, and turns
predictions into scores. Three kinds exist: those on shards (:mod:`eval.benchmarks.shards`, the quickstart's), those of
the catalogue (:mod:`eval.benchmarks.catalog`: one YAML row in ``configs/benchmarks/`` names a reader of the official
local files, a prompt, an answer parser, a metric and a protocol), and files without references
(:mod:`eval.benchmarks.inputs`). A new official benchmark is a row, and Python only where its files or its metric are
new:

- a :class:`eval.benchmarks.reader.Reader` yields :class:`eval.benchmarks.reader.Item` objects: fields for the prompt,
  media that are read when they are asked for, the gold reply, and what the metric needs (``meta``);
- a :class:`eval.benchmarks.parser.Parser` reads an answer from a reply, or says why it cannot;
- a :class:`eval.benchmarks.metric.Metric` scores answers in one pass, with the help of :class:`eval.tally.Tally`, which
  keeps a few numbers per sample, gives standard errors clustered by image, and lets ``compare`` pair two runs.

Their class paths stand in :data:`eval.benchmarks.catalog.ALLOWED_CLASSES`; nothing else is imported.
"""

from __future__ import annotations

import base64
import hashlib
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from data.media import decode_target, encode_mask
from data.records import Target
from data.shards import Sample
from eval.benchmarks.answer import Answer
from eval.judges.judge import Judge
from eval.metrics.statistics import Score
from eval.prediction import Prediction
from inference.files import encode_vector

TEXT_ONLY = "the prompt has no media"
HEAD_NEEDS_MEDIA = "without its media the task is not available, so the score is 0 by construction; see zeroed"
_GOLD_WIDTH = 64
_NAME = re.compile(r"[\w.-]+")
FAILED_IS_WRONG = "free-running; a reply that does not parse or is cut at the length limit is wrong"


class BenchmarkError(ValueError):
    """Files of a benchmark that cannot be used; names the file, what was expected and what was given."""


class Benchmark(ABC):
    """Questions, and what makes an answer right.

    Args:
        name: Unique among all benchmarks.
        metrics: Names of the numbers that :meth:`score` returns; unique among all benchmarks.
        protocol: Identifier of how it is asked and scored, ``NAME/VARIANT@VERSION``; scores of different protocols are
            never compared. The version rises with every change that changes a score.
        data: The folder of its files.
        split: Which split is asked.
        without: Control -> why it is not measured.
        generation: What it asks of decoding, such as ``max_new_tokens``; the command's own options come before it.

    Attributes:
        call: The task whose call answers every question, or None; the zeroed control's replies begin with it.
        given: Whether that call is given instead of being left to the model: its answer is measured, not whether it
            is made.
        hidden: Whether the references are with a server, so that nothing is scored here.
        needs_judge: Whether a judge decides.
        judge: The judge, if whoever scores has one.
    """

    call: str | None = None
    given: bool = False
    hidden: bool = False
    needs_judge: bool = False
    judge: Judge | None = None

    def __init__(
        self,
        name: str,
        metrics: Sequence[str],
        protocol: str,
        data: str | Path,
        *,
        split: str = "test",
        without: Mapping[str, str] | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        if not _NAME.fullmatch(name):  # it becomes part of file names
            raise BenchmarkError(f"benchmark name: expected letters, digits, '_', '-' and '.', got {name!r}")
        self.name = name
        self.metrics = tuple(metrics)
        self.protocol = protocol
        self.data = Path(data)
        self.split = split
        self.without = dict(without or {})
        self.generation = dict(generation or {})

    @property
    def described(self) -> Mapping[str, Any]:
        """What it takes to make it again, where its name is not enough."""
        return {}

    @property
    @abstractmethod
    def data_sha256(self) -> str:
        """Of the files that questions and references are read from.

        Raises:
            ValueError: If they are not there.
        """

    @abstractmethod
    def records(self) -> Iterable[Sample]:
        """The samples in a fixed order, media undecoded; may be lazy, and may be asked for again.

        Keys are unique. The last assistant turn is the gold reply: what it says scores the maximum.

        Raises:
            ValueError: If the files are not there or malformed, or a key occurs twice.
        """

    @abstractmethod
    def score(self, predictions: Iterable[Prediction]) -> dict[str, Score]:
        """Score predictions of this benchmark in one pass, holding none of them.

        Args:
            predictions: At least one; may be a stream.

        Returns:
            Metric name -> score, for every name in :attr:`metrics`.
        """

    @abstractmethod
    def right(self, prediction: Prediction) -> bool:
        """Whether an example counts as right when it is shown."""

    @abstractmethod
    def constant(self, prediction: Prediction) -> Prediction:
        """The prediction with its answer replaced by the best constant one."""

    @property
    def constant_na(self) -> str:
        """Why there is no constant reply; "" where there is one."""
        return ""

    @property
    def constant_about(self) -> str:
        """Where the constant reply comes from, in words."""
        return "chosen on the validation split"

    def answer(self, prediction: Prediction) -> Answer:
        """What the reply says; by default its text."""
        failure = prediction.failure
        return Answer(None, failure) if failure else Answer(prediction.text)

    def gold(self, prediction: Prediction) -> Prediction:
        """The prediction with the reference for an answer: text, calls, and each call's target as its result."""
        reference = prediction.reference
        calls = [{name: call[name] for name in ("task", "prompt", "groundings")} for call in reference["calls"]]
        results = [_gold_result(call.get("target")) for call in reference["calls"]]
        text = str(reference["text"])
        return replace(prediction, raw=text, text=text, calls=calls, errors=(), results=results, finish_reason="stop")


def majority(values: Iterable[str]) -> str:
    """The most frequent value; of equally frequent ones the first in the alphabet.

    Raises:
        ValueError: If there are none.
    """
    counts = Counter(values)
    if not counts:
        raise ValueError("constant control: expected at least one validation answer, got none")
    return min(counts, key=lambda value: (-counts[value], value))


def meta_part(name: str) -> Callable[[Prediction], str]:
    """Groups predictions by an entry of their meta."""
    return lambda prediction: str(prediction.meta.get(name, "other"))


def says(prediction: Prediction, text: str) -> Prediction:
    """The prediction with plain text for a reply."""
    return replace(prediction, raw=text, text=text, calls=(), errors=(), results=(), finish_reason="stop")


def answers_with(prediction: Prediction, result: Mapping[str, Any]) -> Prediction:
    """The prediction with the reference's calls, the first of which is answered by ``result``."""
    calls = [{name: call[name] for name in ("task", "prompt", "groundings")} for call in prediction.reference["calls"]]
    return replace(prediction, raw="", text="", calls=calls, errors=(), results=(result,), finish_reason="stop")


def _gold_result(target: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if target is None:
        return None
    if target["type"] == "box":
        return {"type": "boxes", "boxes_xyxy": [target["value"]], "scores": [1.0]}
    if target["type"] == "mask":
        return {"type": "mask", "mask": _mask_of(target)}
    if target["type"] == "image":
        return {"type": "image", "png": target["data"]}
    if target["type"] == "label":
        return {"type": "label", "label": target["value"], "probabilities": {}}
    if target["type"] == "pair":
        return {"type": "embedding", "float32": encode_vector(_vector_of(str(target["value"]["item"])))}
    return {"type": "score", "score": target["value"]}


def _vector_of(name: str) -> Tensor:
    """A unit vector that belongs to a name: the same for the same, and none alike for two."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
    return normalize(torch.randn(_GOLD_WIDTH, generator=torch.Generator().manual_seed(seed)), dim=0)


def _mask_of(target: Mapping[str, Any]) -> dict[str, Any]:
    """A mask target as run-length, whether it is one already or a PNG member."""
    if "data" not in target:
        value: dict[str, Any] = target["value"]
        return value
    mask = decode_target(Target("mask", file=target["file"]), base64.b64decode(target["data"]))
    return encode_mask(mask)
