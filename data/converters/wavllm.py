"""WavLLM TSV files (https://arxiv.org/abs/2404.00656): ``id, audio, n_frames, prompt, tgt_text, with_speech``."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import soundfile

from data.converters.conversion import Converted, SkipItemError, Tally, draft, read_below, tidy
from data.converters.voice_tsv import read_tsv
from data.drafts import Draft
from data.media import MediaError

WANTED = {"id", "audio", "prompt", "tgt_text"}
FIELDS = WANTED | {"n_frames", "with_speech", "start_frame", "end_frame"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the format."""
    parser.add_argument("--media-root", type=Path, help="folder of the audio (default: the TSV's)")


def convert(source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
    """One record per row, audio before the instruction.

    ``n_frames`` is not trusted, since released files fill it with a constant: the audio's own length counts, and
    ``meta.n_frames`` keeps what was declared.
    """
    for number, row in enumerate(read_tsv(source, WANTED, tally)):
        tally.fields(row, FIELDS)
        try:
            yield _record(row, options.media_root or source.parent, options, number)
        except (SkipItemError, MediaError) as error:
            tally.skip(row["id"], str(error))


def read_slice(root: Path, path: str) -> bytes:
    """The bytes of a file, or of the stretch ``FILE:OFFSET:LENGTH`` of one.

    Raises:
        SkipItemError: If it is not there, or too short.
    """
    file, *numbers = path.split(":")
    if not numbers:
        return read_below(root, file)
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        raise SkipItemError("path that is neither FILE nor FILE:OFFSET:LENGTH")
    offset, length = int(numbers[0]), int(numbers[1])
    data = read_below(root, file)[offset : offset + length]
    if len(data) != length:
        raise SkipItemError("stretch beyond the end of its file")
    return data


def _record(row: Mapping[str, str], root: Path, options: argparse.Namespace, number: int) -> Converted:
    made = draft(options, number, "speech_instruction")
    prompt, reply = tidy(row["prompt"]), tidy(row["tgt_text"])
    if not reply:
        raise SkipItemError("row without a target")
    spoken = row.get("with_speech", "True").lower() not in ("false", "0", "no")
    if spoken:
        _add_audio(made, row, root)
    elif not prompt:
        raise SkipItemError("row without speech and without a prompt")
    made.user(*([made.medium("audio")] if spoken else []), *([prompt] if prompt else []))
    made.assistant(reply)
    made.meta["id"] = row["id"]
    if row.get("n_frames"):
        made.meta["n_frames"] = row["n_frames"]
    return made.finish()


def _add_audio(made: Draft, row: Mapping[str, str], root: Path) -> None:
    data = read_slice(root, row["audio"])
    if row.get("start_frame") or row.get("end_frame"):
        data = _cut(data, row)
    made.add_audio(data)


def _cut(data: bytes, row: Mapping[str, str]) -> bytes:
    try:
        start, stop = int(row.get("start_frame") or 0), int(row.get("end_frame") or -1)
        samples, rate = soundfile.read(io.BytesIO(data), dtype="int16", start=start, stop=None if stop < 0 else stop)
    except (ValueError, RuntimeError) as error:
        raise SkipItemError(f"start_frame or end_frame that does not fit ({type(error).__name__})") from None
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="FLAC", subtype="PCM_16")
    return stream.getvalue()
