"""From a prediction log to the file that a benchmark's server takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.benchmarks.answer import Answer
from eval.benchmarks.benchmark import BenchmarkError
from eval.benchmarks.catalog import CatalogBenchmark
from eval.benchmarks.lookup import benchmarks_of
from eval.benchmarks.metric import Answered
from eval.log import Log, LogError, read_log
from eval.prediction import silent
from eval.score import check_belongs

MISSING = "not asked"


@dataclass(frozen=True)
class Submitted:
    """A file that was written.

    Args:
        benchmark: Its benchmark.
        path: The file, or the folder.
        rows: How many rows it has.
        missing: Samples without a prediction, whose answers are empty.
        unread: Replies from which nothing could be read.
    """

    benchmark: str
    path: Path
    rows: int
    missing: int
    unread: int


def submit_log(
    path: str | Path,
    out: str | Path,
    names: Sequence[str] = (),
    data: str | Path | None = None,
    catalogs: Sequence[str | Path] = (),
    incomplete: bool = False,
) -> list[Submitted]:
    """Write the submissions of a log.

    Args:
        path: The log.
        out: The file of the only benchmark, or a folder for one file each.
        names: Of benchmarks; all that have a submission by default.
        data: Where the benchmarks' files are, if not where the log says.
        catalogs: Of benchmark rows beside the shipped ones.
        incomplete: Write empty answers for samples without a prediction instead of refusing.

    Raises:
        LogError: If samples lack predictions, or the data or the protocol changed since.
        BenchmarkError: If a benchmark has no submission, or the file's ending is not one of its.
    """
    log, out = read_log(path), Path(out)
    if log.header.control is not None:
        raise LogError(f"{path}: expected predictions of a model itself, got its control {log.header.control}")
    found = {
        name: item for name, item in benchmarks_of(log, data, catalogs).items() if isinstance(item, CatalogBenchmark)
    }
    wanted = list(names) or [name for name, item in found.items() if item.submission is not None]
    unknown = sorted(set(wanted) - set(found))
    if unknown or not wanted:
        raise BenchmarkError(
            f"{path}: expected predictions of benchmarks with a submission, got {unknown or sorted(log.benchmarks)}"
        )
    written = []
    for name in wanted:
        submission = found[name].submission
        if submission is None:
            raise BenchmarkError(f"{name}: has no submission: nothing takes its answers")
        target = out
        if len(wanted) > 1 or (not out.suffix and submission.endings):
            target = out / f"{name}{submission.endings[0] if submission.endings else ''}"
        if submission.endings and target.suffix not in submission.endings:
            raise BenchmarkError(f"'{target}': expected a file that ends in {' or '.join(submission.endings)}")
        answers = _Answers(log, found[name], incomplete)
        rows = submission.write(iter(answers), target)
        written.append(Submitted(name, target, rows, answers.missing, answers.unread))
    return written


class _Answers:
    """The answers to all samples of a benchmark, in its order."""

    def __init__(self, log: Log, benchmark: CatalogBenchmark, incomplete: bool) -> None:
        absent = check_belongs(log, benchmark)
        if absent:
            raise BenchmarkError(f"{benchmark.name}: its files are needed for their order: {absent}")
        self.log, self.benchmark = log, benchmark
        self.missing = self.unread = 0
        lacking = [sample.key for sample in benchmark.records() if (benchmark.name, sample.key) not in log.keys]
        if lacking and not incomplete:
            raise LogError(
                f"{log.path}: {len(lacking)} samples of '{benchmark.name}' lack predictions, such as '{lacking[0]}'; "
                "predict again to ask them, or submit empty answers with --incomplete"
            )

    def __iter__(self) -> Iterator[Answered]:
        rows = iter(self.log.rows(self.benchmark.name))  # in the benchmark's order, too
        row = next(rows, None)
        for sample in self.benchmark.records():
            if row is None or row.key != sample.key:
                self.missing += 1
                yield Answered(silent(self.benchmark.name, sample), Answer(None, MISSING))
                continue
            answer = self.benchmark.answer(row)
            self.unread += not answer.parsed
            yield Answered(row, answer)
            row = next(rows, None)
        if row is not None:
            raise LogError(f"{self.log.path}: expected predictions in the benchmark's order, got '{row.key}' out of it")
