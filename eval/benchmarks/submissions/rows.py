"""Submissions in JSON: a list of objects, an object of answers by id, or COCO's detections."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.benchmarks.benchmark import BenchmarkError
from eval.benchmarks.metric import Answered
from eval.benchmarks.reader import below, read_json
from eval.benchmarks.submissions.submission import IDS, Submission, check_source, replacing, value_of
from eval.metrics.text import normalise_answer


class JsonRows(Submission):
    """``[{ENTRY: VALUE, ...}, ...]``, or ``{ID: VALUE, ...}``.

    Args:
        entries: Name in the file -> one of :data:`eval.benchmarks.submissions.submission.SOURCES`.
        by: Source of the id; the file is then an object whose values are those of the only entry.
        fill: ``{file, rows, by}`` of a larger list of questions, where a server wants every one of them though a part
            is scored: those that were not asked get an empty answer.
    """

    def __init__(
        self, entries: Mapping[str, str], by: str | None = None, fill: Mapping[str, str] | None = None
    ) -> None:
        for source in (*entries.values(), *([by] if by is not None else [])):
            check_source(source)
        if not entries or (by is not None and (len(entries) != 1 or fill)):
            raise BenchmarkError(f"submission: expected {'one entry' if by else 'entries'}, got {dict(entries)}")
        self.entries, self.by, self.fill = dict(entries), by, dict(fill or {})

    def write(self, answers: Iterable[Answered], out: Path) -> int:
        """Row by row; the whole is never held."""
        opening, closing = ("[", "]") if self.by is None else ("{", "}")
        count = 0
        with replacing(out) as stream:
            stream.write(opening)
            for text in self._texts(answers):
                stream.write(("," if count else "") + f"\n{text}")
                count += 1
            stream.write(f"\n{closing}\n")
        return count

    def _texts(self, answers: Iterable[Answered]) -> Iterator[str]:
        (first, *_) = self.entries.values()
        written: set[str] = set()
        for item in answers:
            written.add(item.row.key)
            if self.by is not None:
                yield f"{_json(str(value_of(item, self.by)))}: {_json(value_of(item, first))}"
            else:
                yield _json({name: value_of(item, source) for name, source in self.entries.items()})
        if self.fill:
            for row in read_json(below(self.root, self.fill["file"]))[self.fill["rows"]]:
                key = row[self.fill["by"]]
                if str(key) not in written:
                    yield _json({name: key if source in IDS else "" for name, source in self.entries.items()})


class CallRows(Submission):
    """COCO's detections (https://cocodataset.org/#format-results): a row per box of a call that names a category."""

    def write(self, answers: Iterable[Answered], out: Path) -> int:
        """Row by row; boxes as x, y, width, height."""
        count = 0
        with replacing(out) as stream:
            stream.write("[")
            for item in answers:
                for row in _detections(item):
                    stream.write(("," if count else "") + f"\n{_json(row)}")
                    count += 1
            stream.write("\n]\n")
        return count


def _detections(item: Answered) -> Iterator[dict[str, Any]]:
    meta = item.row.meta
    ids = {normalise_answer(name): int(key) for key, name in meta["categories"].items()}
    for found in item.answer.value if item.answer.parsed else ():
        category = ids.get(normalise_answer(found["prompt"]))
        if category is not None:
            x1, y1, x2, y2 = map(float, found["box_xyxy"])
            box = [x1, y1, x2 - x1, y2 - y1]
            yield {"image_id": meta["image_id"], "category_id": category, "bbox": box, "score": float(found["score"])}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
