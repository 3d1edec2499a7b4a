"""Tables of questions in JSON, JSON lines, TSV, parquet or Arrow: what a row means is configured."""

from __future__ import annotations

import base64
import binascii
import csv
import json
import re
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from string import Formatter
from typing import Any

from data.converters.conversion import ConversionError
from data.converters.tables import batches
from eval.benchmarks.benchmark import BenchmarkError
from eval.benchmarks.prompt import LETTERS
from eval.benchmarks.reader import Item, MediaFile, Reader, below, read_json_lines
from eval.metrics.answers.vqa import official_accuracy

Row = Mapping[str, Any]
_SINGLE_FIELD = re.compile(r"\{[\w.]+\}\Z")


class RowsReader(Reader):
    """One question per row.

    ``ENTRY`` is the name of a row's entry, ``a.b`` of one within another; a ``PATTERN`` has entries in braces, such as
    ``{image_id:012d}.jpg``.

    Args:
        root: The benchmark's folder.
        key: ENTRY or PATTERN of the unique id.
        fields: Field of the prompt -> ENTRY or PATTERN; a list is joined by commas.
        options: ENTRY with a list of options, or one ENTRY per option, of which those without a text are left out.
        media: Name (a media type, perhaps with a number) -> PATTERN of a file below ``root``, or ENTRY that holds the
            medium itself: bytes, base64, Hugging Face's ``{"bytes", "path"}``, or a list of them. A row without one
            is not asked, and named, unless ``spare_media``.
        spare_media: Whether rows may show nothing, such as questions of text alone.
        answer: ENTRY of the gold reply, or one of ``{index: ENTRY}`` (a number that becomes the option's letter),
            ``{text: ENTRY}`` (an option's text that does), ``{any: ENTRY}`` (a list of golds, texts or
            ``{"answer": text}``, of which the one that the others agree with best is said), ``{most: ENTRY}`` (the most
            frequent of such a list).
        meta: Entries that the metric needs, or that scores are broken down by.
        where: ENTRY -> value, or list of values, of the rows that are asked; all by default.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        key: str,
        fields: Mapping[str, str] | None = None,
        options: str | Sequence[str] | None = None,
        media: Mapping[str, str] | None = None,
        answer: str | Mapping[str, str] | None = None,
        meta: Sequence[str] = (),
        where: Mapping[str, Any] | None = None,
        spare_media: bool = False,
    ) -> None:
        super().__init__(root)
        self.key, self.options, self.answer = key, options, answer
        self.fields = dict(fields or {"question": "question"})
        self.media, self.meta, self.where = dict(media or {}), tuple(meta), dict(where or {})
        self.spare_media = spare_media

    @abstractmethod
    def rows(self) -> Iterator[tuple[str, Row]]:
        """(where it stands, for messages; the row)."""

    def items(self) -> Iterator[Item]:
        """One per row that is asked."""
        for place, row in self.rows():
            try:
                if self._is_asked(row):
                    yield from self.items_of(row)
            except KeyError as error:
                raise BenchmarkError(f"{place}: expected an entry {error}, got {sorted(row)}") from None
            except (TypeError, ValueError, IndexError) as error:
                raise BenchmarkError(f"{place}: {error}") from None

    def items_of(self, row: Row) -> Iterator[Item]:
        """The questions of a row: one, unless a reader makes more of it."""
        options = self._options(row)
        fields: dict[str, Any] = {name: self.field(row, spec) for name, spec in self.fields.items()}
        meta = {name: value for name in self.meta if (value := find(row, name, None)) is not None}
        if options:
            fields["options"] = options
            meta["options"] = options
        golds = self._golds(row, options)
        kind = next(iter(self.answer)) if isinstance(self.answer, Mapping) else ""
        if golds is not None and kind in ("any", "most"):
            meta["answers"] = golds
        yield Item(
            key=fill(self.key, row),
            fields=fields,
            media=self.media_of(row),
            answer="" if golds is None else _best(golds, golds.count if kind == "most" else None),
            meta=meta,
        )

    def field(self, row: Row, spec: str) -> Any:
        """The content of a prompt's field."""
        value = fill(spec, row) if "{" in spec else find(row, spec)
        return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)

    def media_of(self, row: Row) -> dict[str, MediaFile]:
        """The media that a row shows."""
        found: dict[str, MediaFile] = {}
        for name, spec in self.media.items():
            kind: Any = name.rstrip("_0123456789")
            own = list(self._media(kind, spec, row))
            if not own and not self.spare_media:
                own = [MediaFile(kind, missing=f"expected its {kind} in '{spec}', got an empty cell")]
            found |= {name if len(own) == 1 else f"{name}{number}": item for number, item in enumerate(own)}
        return found

    def _media(self, kind: Any, spec: str, row: Row) -> Iterator[MediaFile]:
        if "{" in spec:
            entries = [entry for _, entry, _, _ in Formatter().parse(spec) if entry]
            if all(find(row, entry) not in (None, "") for entry in entries):
                yield MediaFile(kind, below(self.root, fill(spec, row)))
            return
        value = find(row, spec, None)
        for cell in value if isinstance(value, list) else [value]:
            held = (cell.get("bytes") or cell.get("path")) if isinstance(cell, Mapping) else cell
            if held not in (None, "", b""):
                yield self._held(kind, cell)

    def _held(self, kind: Any, cell: Any) -> MediaFile:
        if isinstance(cell, Mapping):
            cell = cell.get("bytes") or cell.get("path")
            if isinstance(cell, str):
                return MediaFile(kind, below(self.root, cell))
        if isinstance(cell, bytes):
            return MediaFile(kind, data=cell)
        try:
            return MediaFile(kind, data=base64.b64decode(cell, validate=True))
        except (binascii.Error, TypeError, ValueError):
            raise ValueError(f"{kind}: expected bytes, base64 or a file, got {str(cell)[:40]!r}") from None

    def _is_asked(self, row: Row) -> bool:
        return all(
            find(row, entry) in (wanted if isinstance(wanted, list) else [wanted])
            for entry, wanted in self.where.items()
        )

    def _options(self, row: Row) -> list[str]:
        if self.options is None:
            return []
        if isinstance(self.options, str):
            return [str(option) for option in find(row, self.options) or ()]
        return [str(row[name]) for name in self.options if row.get(name) not in (None, "")]

    def _golds(self, row: Row, options: Sequence[str]) -> list[str] | None:
        if self.answer is None:
            return None
        if isinstance(self.answer, str):
            value = find(row, self.answer, None)
            return None if value in (None, "") else [str(value)]
        ((kind, entry),) = self.answer.items()
        value = find(row, entry, None)
        if value is None:
            return None
        if kind == "index":
            return [LETTERS[: len(options)][int(value)]]
        if kind == "text":
            if str(value) not in options:
                raise ValueError(f"answer: expected one of {options}, got {value!r}")
            return [LETTERS[options.index(str(value))]]
        golds = value if isinstance(value, list) else [value]
        return [str(gold["answer"] if isinstance(gold, Mapping) else gold) for gold in golds] or None


class JsonReader(RowsReader):
    """Rows in JSON files, or in JSON lines under any ending.

    Args:
        root: The benchmark's folder.
        files: Names below it; or name -> entries that its rows have besides, such as a split.
        rows: ENTRY of a file that holds the rows; the file itself by default. They are a list, whose rows get their
            number as ``_row``, or an object, whose rows get their name as ``_id``.
        join: What to add to rows from other files: ``{file, rows, by}`` each. Every row needs exactly one partner with
            the same entry ``by``, and every partner a row unless ``spare`` is true.
        **columns: As in :class:`RowsReader`.
    """

    def __init__(
        self,
        root: str | Path,
        files: Sequence[str] | Mapping[str, Mapping[str, Any]],
        rows: str | None = None,
        join: Sequence[Mapping[str, Any]] = (),
        **columns: Any,
    ) -> None:
        super().__init__(root, **columns)
        self.inside, self.join = rows, tuple(join)
        self._files = dict(files) if isinstance(files, Mapping) else {name: {} for name in files}

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the rows, and those that are joined."""
        names = [*self._files, *(str(other["file"]) for other in self.join)]
        return tuple(below(self.root, name) for name in names)

    def rows(self) -> Iterator[tuple[str, Row]]:
        """The rows of all files."""
        partners = [self._partners(other) for other in self.join]
        used: list[set[Any]] = [set() for _ in self.join]
        for name, more in self._files.items():
            for place, row in _json_rows(below(self.root, name), self.inside):
                row = {**row, **more}
                for other, table, own in zip(self.join, partners, used, strict=True):
                    value = row.get(other["by"])
                    if value not in table:
                        raise BenchmarkError(
                            f"{place}: expected {other['by']} {value!r} in '{other['file']}', got none"
                        )
                    own.add(value)
                    row = {**table[value], **row}
                yield place, row
        for other, table, own in zip(self.join, partners, used, strict=True):
            left = [name for name in table if name not in own]
            if left and not other.get("spare"):
                raise BenchmarkError(
                    f"'{below(self.root, other['file'])}': expected a question for every {other['by']}, got none for "
                    f"{len(left)}, such as {left[0]!r}"
                )

    def _partners(self, other: Mapping[str, Any]) -> dict[Any, Row]:
        by, table = str(other["by"]), dict[Any, Row]()
        for place, row in _json_rows(below(self.root, str(other["file"])), other.get("rows")):
            if by not in row:
                raise BenchmarkError(f"{place}: expected an entry '{by}', got {sorted(row)}")
            if row[by] in table:
                raise BenchmarkError(f"{place}: expected every {by} once, got {row[by]!r} again")
            table[row[by]] = row
        return table


class TableReader(RowsReader):
    """Rows in TSV or CSV with a header, in parquet files, or in a Hugging Face dataset saved to disk.

    Args:
        root: The benchmark's folder.
        file: A file below it, or a pattern such as ``validation-*.parquet``, ``*.arrow``. Rows of parquet and Arrow get
            their number in the file as ``_row``.
        **columns: As in :class:`RowsReader`.
    """

    def __init__(self, root: str | Path, file: str, **columns: Any) -> None:
        super().__init__(root, **columns)
        self.file = file

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that match, or the pattern itself where none does."""
        path = below(self.root, self.file)
        return tuple(sorted(self.root.glob(self.file))) or (path,)

    def rows(self) -> Iterator[tuple[str, Row]]:
        """The rows of all files."""
        for path in self.files:
            if path.suffix in (".tsv", ".csv"):
                yield from _text_rows(path)
            else:
                yield from table_rows(path)


def table_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a parquet or Arrow file, with their places.

    Raises:
        BenchmarkError: If it is not there or does not open.
    """
    number = 0
    if not path.is_file():
        raise BenchmarkError(f"'{path}': cannot be read: no such file")
    try:
        for _, batch in batches(path):
            for row in batch.to_pylist():
                yield f"'{path}' row {number}", {"_row": number, **row}
                number += 1
    except ConversionError as error:
        raise BenchmarkError(str(error)) from None


def find(row: Row, entry: str, *default: Any) -> Any:
    """An entry of a row, or one within another (``a.b``).

    Raises:
        KeyError: If it is not there and no default is given.
    """
    value: Any = row
    for name in [entry] if entry in row else entry.split("."):
        if not isinstance(value, Mapping) or name not in value:
            if default:
                return default[0]
            raise KeyError(entry)
        value = value[name]
    return value


def fill(pattern: str, row: Row) -> str:
    """An entry as text, or a pattern with entries in braces.

    Raises:
        KeyError: If an entry is not there.
        ValueError: If a format does not fit its entry.
    """
    if "{" not in pattern:
        return str(find(row, pattern))
    if _SINGLE_FIELD.match(pattern):
        return str(find(row, pattern[1:-1]))
    pieces = []
    for literal, entry, spec, _ in Formatter().parse(pattern):
        pieces.append(literal)
        if entry is not None:
            value = find(row, entry)
            pieces.append(format(int(value) if spec and spec[-1] == "d" else value, spec or ""))
    return "".join(pieces)


def _best(golds: Sequence[str], worth: Callable[[str], float] | None = None) -> str:
    """The gold that is worth most against all of them; of equally good ones the first."""
    return max(dict.fromkeys(golds), key=worth or (lambda gold: official_accuracy(gold, golds)))


def _json_rows(path: Path, inside: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        data = path.read_bytes()
        # Rows by name: the JSON parser would keep the last of several rows of one name, and say nothing.
        by_name = inside is None and data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{"
        value = json.loads(data, object_pairs_hook=partial(_distinct, path) if by_name else None)
    except OSError as error:
        raise BenchmarkError(f"'{path}': cannot be read: {error.strerror}") from None
    except BenchmarkError:
        raise
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise BenchmarkError(f"'{path}': expected JSON, got {error}") from None
        for number, row in read_json_lines(path):
            yield f"'{path}' line {number}", row
        return
    except ValueError as error:
        raise BenchmarkError(f"'{path}': expected JSON, got {error}") from None
    if inside is not None:
        if not isinstance(value, dict) or inside not in value:
            names = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise BenchmarkError(f"'{path}': expected an entry '{inside}', got {names}")
        value = value[inside]
    if isinstance(value, dict):
        pairs = [(f"'{path}' entry '{name}'", {"_id": name, **_object(path, row)}) for name, row in value.items()]
    elif isinstance(value, list):
        pairs = [(f"'{path}' row {n}", {"_row": n, **_object(path, row)}) for n, row in enumerate(value, 1)]
    else:
        raise BenchmarkError(f"'{path}': expected a list or an object of rows, got {type(value).__name__}")
    yield from pairs


def _distinct(path: Path, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, if no name is there twice."""
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise BenchmarkError(f"'{path}': expected every entry once, got '{twice}' again")
    return made


def _object(path: Path, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise BenchmarkError(f"'{path}': expected rows that are JSON objects, got {type(row).__name__}")
    return row


def _text_rows(path: Path) -> Iterator[tuple[str, Row]]:
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # images stand in cells
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
            for row in reader:
                if None in row or None in row.values():
                    raise BenchmarkError(
                        f"'{path}' line {reader.line_num}: expected {len(reader.fieldnames or ())} cells"
                    )
                yield f"'{path}' line {reader.line_num}", row
    except OSError as error:
        raise BenchmarkError(f"'{path}': cannot be read: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise BenchmarkError(f"'{path}': expected a table, got {error}") from None
    finally:
        csv.field_size_limit(before)
