"""Benchmarks on shards of a data directory, such as the quickstart's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from data.shards import Sample, expand, read_samples
from eval.benchmarks.benchmark import Benchmark
from eval.prediction import Prediction, silent


class ShardBenchmark(Benchmark):
    """Questions in ``DATA/SPLIT/NAME-*.tar``; the constant control always answers from "val".

    Args:
        name: Prefix of its shards.
        metrics: Names of the metrics that :meth:`score` returns.
        data: The data directory.
        split: Which split is asked.
        without: Control -> why it is not measured.
    """

    def __init__(
        self,
        name: str,
        metrics: Sequence[str],
        data: str | Path,
        split: str = "test",
        without: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name, metrics, f"quickstart/{name}@1", data, split=split, without=without)

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

    def records(self) -> Iterator[Sample]:
        """The samples, in the order of the shards."""
        return read_samples(self.shards)

    @cached_property
    def validation(self) -> list[Prediction]:
        """References of the validation split as predictions that say nothing; for the constant control."""
        paths = expand(str(self.data / "val" / f"{self.name}-*.tar"))
        return [silent(self.name, sample) for sample in read_samples(paths)]
