"""Submissions as tables and lines: MMBench's workbook, MME's files, one hypothesis per line."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks.benchmark import BenchmarkError
from eval.benchmarks.metric import Answered
from eval.benchmarks.submissions.submission import Submission, check_source, replacing, value_of
from eval.metrics.answers.yes_no import MME_COGNITION, MME_PERCEPTION

_LONGEST_CELL = 32_767
_NOT_IN_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


class Table(Submission):
    """A workbook (``.xlsx``), or TSV or CSV, with a header.

    Args:
        columns: Header -> one of :data:`eval.benchmarks.submissions.submission.SOURCES`.
    """

    endings = (".xlsx", ".tsv", ".csv")

    def __init__(self, columns: Mapping[str, str]) -> None:
        for source in columns.values():
            check_source(source)
        self.columns = dict(columns)

    def write(self, answers: Iterable[Answered], out: Path) -> int:
        """By the ending of the file."""
        rows = ([value_of(item, source) for source in self.columns.values()] for item in answers)
        if out.suffix == ".xlsx":
            return self._workbook(rows, out)
        count = 0
        with replacing(out, newline="") as stream:
            table = csv.writer(stream, delimiter="\t" if out.suffix == ".tsv" else ",", lineterminator="\n")
            table.writerow(self.columns)
            for row in rows:
                table.writerow(row)
                count += 1
        return count

    def _workbook(self, rows: Iterable[list[Any]], out: Path) -> int:
        """Texts are texts: no reply becomes a formula, a link or an empty cell, and none is cut."""
        try:
            from openpyxl import Workbook
            from openpyxl.cell import WriteOnlyCell
        except ImportError:
            raise BenchmarkError(f"'{out}': workbooks need openpyxl (the extra 'eval'); .tsv and .csv do not") from None
        held = [self._checked(row, number, out) for number, row in enumerate(rows, 1)]
        book = Workbook(write_only=True)
        sheet = book.create_sheet("Sheet1")
        table: list[list[int | str]] = [[*self.columns], *held]
        for row in table:
            cells = [WriteOnlyCell(sheet, value=value) for value in row]
            for cell, value in zip(cells, row, strict=True):
                if isinstance(value, str):
                    cell.data_type = "s"  # else a text that begins with "=" is a formula
            sheet.append(cells)
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = out.with_name(f"{out.name}.part")
        try:
            book.save(draft)
            os.replace(draft, out)
        finally:
            draft.unlink(missing_ok=True)
        return len(held)

    def _checked(self, row: Sequence[Any], number: int, out: Path) -> list[int | str]:
        cells = [value if isinstance(value, int) else str(value) for value in row]
        for name, value in zip(self.columns, cells, strict=True):
            if isinstance(value, str) and (len(value) > _LONGEST_CELL or _NOT_IN_XML.search(value)):
                raise BenchmarkError(
                    f"'{out}' row {number}, {name}: expected a text of at most {_LONGEST_CELL} characters without "
                    f"control characters, got one of {len(value)}; write .tsv or .csv instead"
                )
        return cells


class Lines(Submission):
    """One line per sample in the benchmark's order, as sacreBLEU and other scripts read hypotheses.

    Args:
        fields: Sources, joined by ``between``; line breaks within them become spaces.
        between: Between fields.
    """

    endings = (".txt",)

    def __init__(self, fields: Sequence[str] = ("answer",), between: str = "\t") -> None:
        for source in fields:
            check_source(source)
        self.fields, self.between = tuple(fields), between

    def write(self, answers: Iterable[Answered], out: Path) -> int:
        """Line by line."""
        count = 0
        with replacing(out) as stream:
            for item in answers:
                stream.write(self.between.join(_one_line(value_of(item, source)) for source in self.fields) + "\n")
                count += 1
        return count


class MmeFiles(Submission):
    """MME's own (https://arxiv.org/abs/2306.13394): ``SUBTASK.txt`` with lines ``IMAGE QUESTION GOLD REPLY`` by tabs.

    The two lines of an image follow one another, as its script expects.
    """

    endings = ()

    def write(self, answers: Iterable[Answered], out: Path) -> int:
        """A file per subtask, each replaced when all are written."""
        lines: dict[str, list[str]] = {name: [] for name in (*MME_PERCEPTION, *MME_COGNITION)}
        for item in answers:
            fields = [value_of(item, f"meta.{name}") for name in ("file", "question", "gold")]
            fields = [fields[0], fields[1], str(fields[2]).capitalize(), "" if item.row.failed else item.row.text]
            lines[str(item.row.meta["subtask"])].append("\t".join(map(_one_line, fields)) + "\n")
        for subtask, own in lines.items():
            with replacing(out / f"{subtask}.txt") as stream:
                stream.writelines(own)
        return sum(map(len, lines.values()))


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())
