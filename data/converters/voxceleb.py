"""VoxCeleb verification trials (https://www.robots.ox.ac.uk/~vgg/data/voxceleb/): ``LABEL FILE FILE`` per line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from data.converters.conversion import ConversionError, Converted, SkipItemError, Tally, draft, read_below
from data.media import MediaError

QUESTION = "Do both clips have the same speaker? Answer yes or no."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the format."""
    parser.add_argument("--media-root", type=Path, required=True, help="folder of the clips, idXXXXX/VIDEO/CLIP.wav")


def convert(source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
    """One record per trial, with two clips and yes or no."""
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"trials '{source}': cannot be read: {error}") from None
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        cells = line.split()
        if len(cells) != 3 or cells[0] not in ("0", "1"):
            raise ConversionError(f"trials '{source}' line {number + 1}: expected '0|1 FILE FILE', got {line!r:.80}")
        try:
            yield _record(cells, options, number)
        except (SkipItemError, MediaError) as error:
            tally.skip(line, str(error))


def _record(cells: list[str], options: argparse.Namespace, number: int) -> Converted:
    made = draft(options, number, "speaker_verification")
    for name, file in (("first", cells[1]), ("second", cells[2])):
        made.add_audio(read_below(options.media_root, file), name)
    made.user(made.medium("first"), made.medium("second"), QUESTION)
    made.assistant("yes" if cells[0] == "1" else "no")
    made.meta |= {"trial": cells[1:], "answer": "yes" if cells[0] == "1" else "no"}
    return made.finish()
