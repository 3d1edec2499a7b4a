"""Ask a model the questions of benchmarks, free-running, and log what it says."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from data.media import MediaError
from data.shards import Sample
from eval.askers.asker import Asker, Question, question_of
from eval.benchmarks.benchmark import Benchmark
from eval.controls import PREDICTED_CONTROLS, blind, media_donors, swap_media
from eval.log import Header, PredictionLog, Skipped, open_log, read_log
from eval.prediction import Prediction
from inference.conversation import Conversation

VERSIONED = ("torch", "transformers", "timm", "torch_geometric", "diffusers", "numpy")
PIECE = 64
"""Samples that are claimed together: consecutive ones, whatever the batch size, so that all workers cut alike."""


@dataclass(frozen=True)
class Asking:
    """What is asked.

    Args:
        control: One of :data:`eval.controls.PREDICTED_CONTROLS`, or None.
        limit: Only the first so many samples of each benchmark; the score says how many are missing.
        chunk: So many samples are handed to the asker together, which batches them by length, and then written.
    """

    control: str | None = None
    limit: int | None = None
    chunk: int = 128

    def __post_init__(self) -> None:
        if self.control is not None and self.control not in PREDICTED_CONTROLS:
            raise ValueError(f"control: expected one of {PREDICTED_CONTROLS}, got {self.control!r}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: expected at least 1, got {self.limit}")


def predict(
    asker: Asker,
    benchmarks: Mapping[str, Benchmark],
    out: str | Path,
    asking: Asking | None = None,
    console: Console | None = None,
) -> int:
    """Write a prediction log, or continue one; any number of processes may do so in one folder.

    Args:
        asker: Who answers.
        benchmarks: What to ask.
        out: The log: a file ``*.jsonl``, or a folder.
        asking: Under which control, and how much; everything, under none, by default.
        console: For messages and the progress bar; standard error by default.

    Returns:
        How many samples this process could not ask (each is named on the console and in the log).

    Raises:
        ValueError: If the benchmarks' files or the log do not fit, or the asker cannot be put under the control.
    """
    console, asking = console or Console(stderr=True), asking or Asking()
    kept = _askable(asker, _under_control(asker, benchmarks, asking.control, console), console)
    if not kept:
        return 0
    keys = {name: [sample.key for sample in benchmark.records()] for name, benchmark in kept.items()}
    header = make_header(asker, kept, {name: len(own) for name, own in keys.items()}, asking.control)
    with open_log(out, header) as log:
        if log.dropped:
            console.print(f"{out}: dropped unfinished last lines of {log.dropped} bytes")
        work = {name: _missing_pieces(name, own[: asking.limit], log) for name, own in keys.items()}
        missing = sum(len(piece) for own in work.values() for piece in own.values())
        if log.done:
            console.print(f"{out}: {len(log.done)} predictions are there, {missing} to go")
        if not missing:
            return 0
        log.claims.forget(log.done_before & {_piece_name(name, piece) for name, own in work.items() for piece in own})
        skipped = 0
        with _progress(console) as progress:
            for name, own in work.items():
                bar = progress.add_task(name, total=sum(map(len, own.values())))
                run = _Run(asker, kept[name], asking, log, progress, bar)
                skipped += run.ask(own)
        others = sorted(f"process {other.pid} on {other.host}" for other in log.claims.others())
    if others:
        console.print(f"{out}: this process is through; {', '.join(others)} may still be at work")
    elif log.shared:
        there = len(read_log(out).keys)
        console.print(
            f"{out}: {there} of {sum(len(own[: asking.limit]) for own in keys.values())} predictions are there"
        )
    if skipped:
        console.print(f"{out}: {skipped} samples could not be asked; scores will show them as missing")
    return skipped


class _Run:
    """One process's way through one benchmark."""

    def __init__(
        self, asker: Asker, benchmark: Benchmark, asking: Asking, log: PredictionLog, progress: Progress, bar: TaskID
    ) -> None:
        self.asker, self.benchmark, self.asking = asker, benchmark, asking
        self.log, self.progress, self.bar = log, progress, bar
        self.settings = dict(asker.settings(benchmark))

    def ask(self, work: Mapping[int, Sequence[int]]) -> int:
        """Ask the pieces that are free, several together; returns how many samples could not be asked."""
        skipped = 0
        claimed: list[int] = []
        chunk: list[tuple[int, Sample, Sample]] = []
        for piece, members in self._pieces(work):
            if not self._claim(piece):
                self.progress.advance(self.bar, len(members))
                continue
            claimed.append(piece)
            chunk += members
            if len(chunk) >= self.asking.chunk:
                skipped += self._ask_chunk(claimed, chunk)
                claimed, chunk = [], []
        return skipped + (self._ask_chunk(claimed, chunk) if claimed else 0)

    def _claim(self, piece: int) -> bool:
        name = _piece_name(self.benchmark.name, piece)
        return not self.log.shared or (not self.log.claims.is_done(name) and self.log.claims.take(name))

    def _pieces(self, work: Mapping[int, Sequence[int]]) -> Iterator[tuple[int, list[tuple[int, Sample, Sample]]]]:
        """(number, (index, sample, sample with the media that are given)) of every piece with something to do."""
        samples = self.benchmark.records()
        donors: Sequence[int] | None = None
        if self.asking.control == "shuffled":
            samples = list(samples)
            donors = media_donors(samples)
        members: list[tuple[int, Sample, Sample]] = []
        wanted = {index for own in work.values() for index in own}
        last = max(wanted)
        for index, sample in enumerate(samples):
            if index in wanted:
                given = sample if donors is None else swap_media(sample, samples[donors[index]])  # type: ignore[index]
                members.append((index, sample, given))
            if members and ((index + 1) % PIECE == 0 or index == last):
                yield index // PIECE, members
                members = []
            if index == last:
                return

    def _ask_chunk(self, pieces: Sequence[int], chunk: Sequence[tuple[int, Sample, Sample]]) -> int:
        skipped = 0
        for start in range(0, len(chunk), self.asking.chunk):
            some = chunk[start : start + self.asking.chunk]
            rows = list(self._answers(some))
            self.log.append(rows)
            self.progress.advance(self.bar, len(some))
            for row in rows:
                if isinstance(row, Skipped):
                    skipped += 1
                    self.progress.console.print(f"{row.benchmark} '{row.key}': left out: {row.reason}")
        if self.log.shared:
            for piece in pieces:
                self.log.claims.finish(_piece_name(self.benchmark.name, piece))
        return skipped

    def _answers(self, chunk: Sequence[tuple[int, Sample, Sample]]) -> Iterator[Prediction | Skipped]:
        questions, name = [], self.benchmark.name
        for index, sample, given in chunk:
            try:
                questions.append(self._question(index, sample, given))
            except MediaError as error:
                yield Skipped(name, sample.key, str(error))
        answers = self.asker.ask(self.benchmark, questions) if questions else []
        for question, answer in zip(questions, answers, strict=True):
            if isinstance(answer, str):
                yield Skipped(name, question.sample.key, answer)
                continue
            read = self.benchmark.answer(answer)
            yield replace(
                answer,
                index=question.index,
                generation={**self.settings, **_loop_of(answer)},
                parsed=read.value,
                parse_status=read.status,
            )

    def _question(self, index: int, sample: Sample, given: Sample) -> Question:
        if not self.asker.reads_media:
            return Question(sample, index, Conversation(()))
        question = question_of(sample, index, given)
        if self.asking.control != "blind":
            return question
        return Question(sample, index, blind(question.conversation))


def make_header(
    asker: Asker, benchmarks: Mapping[str, Benchmark], expected: Mapping[str, int], control: str | None
) -> Header:
    """The log's first line; see :class:`eval.log.Header`."""
    identity = {
        **asker.identity,
        "data_sha256": {name: benchmark.data_sha256 for name, benchmark in benchmarks.items()},
        "n_expected": dict(expected),
        "protocols": {name: benchmark.protocol for name, benchmark in benchmarks.items()},
        "generation": {name: dict(asker.settings(benchmark)) for name, benchmark in benchmarks.items()},
        "split": next(iter(benchmarks.values())).split,
        "control": control,
        "versions": {name: _version(name) for name in VERSIONED},
    }
    info = {
        **asker.info,
        "data": str(next(iter(benchmarks.values())).data),
        "inputs": {name: benchmark.described for name, benchmark in benchmarks.items() if benchmark.described},
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
    }
    return Header(identity, info)


def _under_control(
    asker: Asker, benchmarks: Mapping[str, Benchmark], control: str | None, console: Console
) -> dict[str, Benchmark]:
    if control is not None and control not in asker.controls:
        allowed = ", ".join(sorted(asker.controls)) or "none"
        raise ValueError(
            f"control: '{control}' means nothing for {type(asker).__name__}, which can be put under {allowed}"
        )
    kept = {}
    for name, benchmark in benchmarks.items():
        if control in benchmark.without:
            console.print(f"{name}: no {control} control: {benchmark.without[str(control)]}")
        else:
            kept[name] = benchmark
    return kept


def _askable(asker: Asker, benchmarks: Mapping[str, Benchmark], console: Console) -> dict[str, Benchmark]:
    """Those that the asker does not refuse; each that it does is named."""
    refused = {name: reason for name, item in benchmarks.items() if (reason := asker.refuses(item))}
    if refused and len(refused) == len(benchmarks):
        raise ValueError("; ".join(f"{name}: {reason}" for name, reason in refused.items()))
    for name, reason in refused.items():
        console.print(f"{name}: not asked: {reason}")
    return {name: item for name, item in benchmarks.items() if name not in refused}


def _loop_of(answer: Prediction) -> dict[str, str]:
    """Which decode loop ran, where the answer says so."""
    return {"loop": answer.generation["loop"]} if "loop" in answer.generation else {}


def _missing_pieces(name: str, keys: Sequence[str], log: PredictionLog) -> dict[int, list[int]]:
    """Number of a piece -> indices of its samples that have no prediction."""
    pieces: dict[int, list[int]] = {}
    for index, key in enumerate(keys):
        if (name, key) not in log.done:
            pieces.setdefault(index // PIECE, []).append(index)
    return pieces


def _piece_name(benchmark: str, piece: int) -> str:
    return f"{benchmark}-{piece:06d}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
