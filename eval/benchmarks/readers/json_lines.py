"""JSON lines with one question each, for a benchmark of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks.benchmark import BenchmarkError
from eval.benchmarks.reader import Item, MediaFile, Reader, below, read_json_lines


class JsonLinesReader(Reader):
    """One JSON object per line.

    Args:
        root: The benchmark's folder.
        file: Below it.
        key: Entry with the unique id.
        answer: Entry with the gold reply; none where there are no references.
        fields: Field of the prompt -> entry.
        media: Media type -> entry with a file name, or a list of them, below ``media_folder``.
        media_folder: Below ``root``.
        meta: Entries that the metric needs, or that scores are broken down by.
        cluster: Entry that dependent questions share; their media by default.
    """

    def __init__(
        self,
        root: str | Path,
        file: str,
        key: str = "id",
        answer: str | None = "answer",
        fields: Mapping[str, str] | None = None,
        media: Mapping[str, str] | None = None,
        media_folder: str = ".",
        meta: Sequence[str] = (),
        cluster: str | None = None,
    ) -> None:
        super().__init__(root)
        self.file, self.key, self.answer, self.cluster = file, key, answer, cluster
        self.fields = dict(fields or {"question": "question"})
        self.media = dict(media or {})
        self.media_folder, self.meta = media_folder, tuple(meta)

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file."""
        return (self.root / self.file,)

    def items(self) -> Iterator[Item]:
        """One per line."""
        for number, row in read_json_lines(self.files[0]):
            needed = {self.key, *self.fields.values(), *((self.answer,) if self.answer else ())}
            missing = sorted(needed - set(row))
            if missing:
                raise BenchmarkError(
                    f"'{self.files[0]}' line {number}: expected the entries {missing}, got {sorted(row)}"
                )
            yield Item(
                key=str(row[self.key]),
                fields={name: _content(row[entry]) for name, entry in self.fields.items()},
                media=self._media(row),
                answer=str(row[self.answer]) if self.answer else "",
                cluster=None if self.cluster is None else str(row[self.cluster]),
                meta={name: row[name] for name in self.meta if name in row},
            )

    def _media(self, row: Mapping[str, Any]) -> dict[str, MediaFile]:
        found = {}
        for kind, entry in self.media.items():
            value = row.get(entry)
            names = value if isinstance(value, list) else [] if value is None else [value]
            for index, name in enumerate(names):
                path = below(self.root, f"{self.media_folder}/{name}")
                found[f"{kind}{index}"] = MediaFile(kind, path)  # type: ignore[arg-type]
        return found


def _content(value: Any) -> str | list[str]:
    return [str(item) for item in value] if isinstance(value, list) else str(value)
