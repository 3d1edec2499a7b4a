"""LibriSpeech trees (https://www.openslr.org/12): ``SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt`` beside FLAC files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from data.converters.conversion import ConversionError, Converted, SkipItemError, Tally, draft, read_below, tidy
from data.media import MediaError

QUESTION = "Transcribe the speech."
AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".mp3")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the format."""
    parser.add_argument("--keep-case", action="store_true", help="keep the capitals of the transcripts")
    parser.add_argument("--language", default="en", help="for the records' meta (%(default)s)")


def convert(source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
    """One record per utterance."""
    transcripts = sorted(source.rglob("*.trans.txt"))
    if not transcripts:
        raise ConversionError(f"'{source}': expected a tree with *.trans.txt, got none")
    number = 0
    for path in transcripts:
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.strip():
                continue
            number += 1
            utterance, _, text = line.strip().partition(" ")
            try:
                yield _record(path.parent, utterance, tidy(text), options, number)
            except (SkipItemError, MediaError) as error:
                tally.skip(utterance, str(error))


def _record(folder: Path, utterance: str, text: str, options: argparse.Namespace, number: int) -> Converted:
    if not text:
        raise SkipItemError("utterance without a transcript")
    made = draft(options, number, "transcribe")
    file = next((utterance + suffix for suffix in AUDIO_SUFFIXES if (folder / (utterance + suffix)).is_file()), None)
    if file is None:
        raise SkipItemError("transcript without audio")
    made.add_audio(read_below(folder, file))
    made.user(made.medium("audio"), QUESTION)
    made.assistant(text if options.keep_case else text.lower())
    made.meta |= {"id": utterance, "speaker": utterance.split("-")[0], "language": options.language}
    return made.finish()
