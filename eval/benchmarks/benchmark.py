"""The contract of a benchmark, and what benchmarks on quickstart-style shards share."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from data.shards import Sample, expand, read_samples
from eval.metrics.statistics import Estimate, Score, mean
from eval.prediction import Prediction, reference_of

TEXT_ONLY = "the prompt has no media"
HEAD_NEEDS_MEDIA = "without its media the task is not available, so the score is 0 by construction; see zeroed"
FAILED_IS_WRONG = "free-running; a reply that does not parse or is cut at the length limit is wrong"


class Benchmark(ABC):
    """Records and what makes a prediction right.

    Args:
        name: Prefix of its shards, ``DATA/SPLIT/NAME-*.tar``.
        metrics: Names of the metrics that :meth:`score` returns.
        without: Control -> why it is not measured.
        data: The data directory.
        split: Which split is asked; the constant control always answers from "val".

    Attributes:
        call: The task whose call answers every question, or None; the zeroed control's replies begin with it.
    """

    call: str | None = None

    def __init__(
        self,
        name: str,
        metrics: Sequence[str],
        data: str | Path,
        split: str = "test",
        without: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.metrics = tuple(metrics)
        self.data = Path(data)
        self.split = split
        self.without = dict(without or {})

    @property
    def shards(self) -> list[str]:
        """Its shards.

        Raises:
            ValueError: If there are none.
        """
        return expand(str(self.data / self.split / f"{self.name}-*.tar"))

    @property
    def data_sha256(self) -> str:
        """Of the shards' bytes, in order."""
        digest = hashlib.sha256()
        for path in self.shards:
            digest.update(Path(path).read_bytes())
        return digest.hexdigest()

    def records(self) -> list[Sample]:
        """The samples, in the order of the shards, with their media undecoded."""
        return list(read_samples(self.shards))

    @cached_property
    def validation(self) -> list[Prediction]:
        """References of the validation split as predictions that say nothing; for the constant control."""
        paths = expand(str(self.data / "val" / f"{self.name}-*.tar"))
        return [Prediction(self.name, item.key, reference=reference_of(item)) for item in read_samples(paths)]

    @abstractmethod
    def score(self, predictions: Sequence[Prediction]) -> dict[str, Score]:
        """Score predictions of this benchmark.

        Args:
            predictions: At least one.

        Returns:
            Metric name -> score, for every name in :attr:`metrics`.
        """

    @abstractmethod
    def right(self, prediction: Prediction) -> bool:
        """Whether an example counts as right when it is shown."""

    @abstractmethod
    def constant(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """The predictions with every answer replaced by the best constant one of the validation split."""


def score_values(
    predictions: Sequence[Prediction],
    value: Callable[[Prediction], float],
    protocol: str,
    *,
    part: Callable[[Prediction], str] | None = None,
    cluster: Callable[[Prediction], Hashable] | None = None,
) -> Score:
    """Mean of one number per prediction.

    Args:
        predictions: At least one.
        value: The number.
        protocol: For the score.
        part: Name of the part that a prediction belongs to.
        cluster: What it shares with predictions that are not independent of it.
    """
    values = [value(prediction) for prediction in predictions]
    clusters = [cluster(prediction) for prediction in predictions] if cluster is not None else None
    whole = mean(values, clusters)
    parts = part_means(predictions, values, part, clusters) if part is not None else {}
    return Score(whole.value, whole.n, whole.stderr, protocol, parts)


def part_means(
    predictions: Sequence[Prediction],
    values: Sequence[float],
    part: Callable[[Prediction], str],
    clusters: Sequence[Hashable] | None = None,
) -> dict[str, Estimate]:
    """Means per part."""
    members: dict[str, list[int]] = {}
    for index, prediction in enumerate(predictions):
        members.setdefault(part(prediction), []).append(index)
    return {
        name: mean([values[i] for i in own], [clusters[i] for i in own] if clusters is not None else None)
        for name, own in members.items()
    }


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
