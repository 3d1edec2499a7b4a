"""Parquet files, and Hugging Face datasets saved to disk: columns become questions, answers and media."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.converters.conversion import (
    ConversionError,
    Converted,
    SkipItemError,
    Tally,
    draft,
    read_below,
    read_json,
    record_split,
    tidy,
)
from data.media import MediaError

_SPLIT_FILE = re.compile(r"(train|validation|valid|val|dev|test)-\d+-of-\d+\.")
"""How tables are named that Hugging Face's hub keeps."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the format."""
    parser.add_argument("--question", required=True, help="column of the question, or text in braces: '{Describe it.}'")
    parser.add_argument("--answer", required=True, help="column of the answer")
    parser.add_argument("--image", action="append", default=[], help="column of an image; may be given several times")
    parser.add_argument("--audio", action="append", default=[], help="column of a clip; may be given several times")
    parser.add_argument("--keep", action="append", default=[], help="column for the records' meta; several times")
    parser.add_argument("--media-root", type=Path, help="folder of media that a column names instead of holding")


def convert(source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
    """One record per row. Columns that are not named are counted as unread."""
    number = -1
    for split, batch in batches(source):
        missing = sorted(_wanted(options) - set(batch.schema.names))
        if missing:
            raise ConversionError(f"'{source}': expected the columns {missing}, got {batch.schema.names}")
        for row in batch.to_pylist():
            number += 1
            tally.fields(row, _wanted(options))
            try:
                yield _record(row, options, number, split)
            except (SkipItemError, MediaError) as error:
                tally.skip(f"row {number}", str(error))


def batches(source: Path) -> Iterator[tuple[str | None, pa.RecordBatch]]:
    """Record batches, and the split that they are of, if their file or folder says so.

    Raises:
        ConversionError: If there are none, or they do not open.
    """
    files = [(source, _split_of_file(source))] if source.is_file() else _files_below(source)
    if not files:
        raise ConversionError(f"'{source}': expected parquet files or a dataset saved to disk, got none")
    for path, split in files:
        try:
            if path.suffix == ".arrow":
                with pa.memory_map(str(path)) as stream:
                    yield from ((split, batch) for batch in pa.ipc.open_stream(stream))
            else:
                yield from ((split, batch) for batch in pq.ParquetFile(path).iter_batches(batch_size=256))
        except (pa.ArrowInvalid, OSError) as error:
            raise ConversionError(f"'{path}': expected a table, got: {error}") from None


def _files_below(folder: Path) -> list[tuple[Path, str | None]]:
    """Tables and their splits: what ``save_to_disk`` lists in ``state.json``, or every parquet and Arrow file."""
    states = sorted(folder.rglob("state.json"))
    if not states:
        found = sorted([*folder.rglob("*.parquet"), *folder.rglob("*.arrow")])
        return [(path, _split_of_file(path)) for path in found]
    files: list[tuple[Path, str | None]] = []
    for state in states:
        listed = read_json(state, dict, "dataset").get("_data_files")
        if not isinstance(listed, list) or not all(isinstance(item, dict) and "filename" in item for item in listed):
            raise ConversionError(f"dataset '{state}': expected a list '_data_files' of files, got {listed!r:.80}")
        several = (state.parent.parent / "dataset_dict.json").is_file()
        split = _split_named(state.parent.name, state.parent) if several else None
        files += [(state.parent / str(item["filename"]), split) for item in listed]
    return files


def _split_of_file(path: Path) -> str | None:
    found = _SPLIT_FILE.match(path.name)
    return _split_named(found[1], path) if found else None


def _split_named(name: str, place: Path) -> str:
    try:
        return record_split(name)
    except SkipItemError as error:
        raise ConversionError(f"'{place}': {error}; convert it alone, with --split") from None


def _wanted(options: argparse.Namespace) -> set[str]:
    columns = {options.answer, *options.image, *options.audio, *options.keep}
    return columns if options.question.startswith("{") else columns | {options.question}


def _record(row: Mapping[str, Any], options: argparse.Namespace, number: int, split: str | None) -> Converted:
    made = draft(options, number, "question", split)
    names = []
    for kind, columns in (("image", options.image), ("audio", options.audio)):
        for place, column in enumerate(columns):
            name = f"{kind}{place}"
            data = _media_bytes(row[column], options.media_root)
            made.add_image(data, name) if kind == "image" else made.add_audio(data, name)
            names.append(name)
    question = options.question.strip("{}") if options.question.startswith("{") else row[options.question]
    answer = row[options.answer]
    if question is None or answer is None:
        raise SkipItemError("row without a question or an answer")
    made.user(*(made.medium(name) for name in names), tidy(str(question)))
    made.assistant(tidy(str(answer)))
    made.meta |= {column: row[column] for column in options.keep}
    return made.finish()


def _media_bytes(value: Any, root: Path | None) -> bytes:
    """The bytes of a cell: bytes, a path, or Hugging Face's ``{"bytes", "path"}``."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and root is not None:
        return read_below(root, value)
    raise SkipItemError("cell without media bytes" + (", and no --media-root" if isinstance(value, str) else ""))
