"""Common Voice and CoVoST 2 TSV files: ``path, sentence`` and, for translation, ``translation``."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from data.converters.conversion import ConversionError, Converted, SkipItemError, Tally, draft, read_below, tidy
from data.media import MediaError

FIELDS = {"client_id", "path", "sentence", "translation", "age", "gender", "accents", "accent", "locale"}
_KEPT = {"client_id": "speaker", "age": "age", "gender": "gender", "accents": "accent", "accent": "accent"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the format."""
    parser.add_argument("--media-root", type=Path, help="folder of the clips (default: 'clips' beside the TSV)")
    parser.add_argument("--language", required=True, help="spoken language, such as en")
    parser.add_argument("--target-language", help="of the translations; with it, records translate")


def read_tsv(path: Path, wanted: set[str], tally: Tally) -> Iterator[dict[str, str]]:
    """Rows of a TSV file with a header and without quoting; one with another number of cells is counted.

    Raises:
        ConversionError: If it cannot be read, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            header = next(rows, [])
            missing = sorted(wanted - set(header))
            if missing:
                raise ConversionError(f"'{path}': expected the columns {missing}, got {header}")
            for number, row in enumerate(rows, 2):
                if not row:
                    continue
                if len(row) != len(header):
                    tally.skip(f"line {number}", "row with another number of cells than the header")
                    continue
                yield dict(zip(header, row, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConversionError(f"'{path}': cannot be read: {error}") from None


def convert(source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
    """One record per clip: its transcript, or its translation with the transcript in ``meta``."""
    wanted = {"path", "sentence"} | ({"translation"} if options.target_language else set())
    for number, row in enumerate(read_tsv(source, wanted, tally)):
        tally.fields(row, FIELDS)
        try:
            yield _record(row, options.media_root or source.parent / "clips", options, number)
        except (SkipItemError, MediaError) as error:
            tally.skip(row["path"], str(error))


def _record(row: Mapping[str, str], root: Path, options: argparse.Namespace, number: int) -> Converted:
    translates = options.target_language is not None
    made = draft(options, number, "translate" if translates else "transcribe")
    made.add_audio(read_below(root, row["path"]))
    sentence, reply = tidy(row["sentence"]), tidy(row["translation"] if translates else row["sentence"])
    if not reply:
        raise SkipItemError("clip without a text")
    question = f"Translate the speech into {options.target_language}." if translates else "Transcribe the speech."
    made.user(made.medium("audio"), question)
    made.assistant(reply)
    made.meta |= {"language": options.language, "transcript": sentence}
    made.meta |= {"target_language": options.target_language} if translates else {}
    made.meta |= {name: row[column] for column, name in _KEPT.items() if row.get(column)}
    return made.finish()
