"""Speech: LibriSpeech, CoVoST 2 and MuST-C, VoxCeleb's trials, IEMOCAP, and WavLLM's spoken questions."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import yaml

from data.converters.conversion import ConversionError, SkipItemError, Tally, tidy
from data.converters.librispeech import AUDIO_SUFFIXES
from data.converters.voice_tsv import read_tsv
from data.converters.wavllm import WANTED, read_slice
from data.media import MediaError
from eval.benchmarks.benchmark import BenchmarkError
from eval.benchmarks.reader import Item, MediaFile, Reader, below, read_lines

_UTTERANCE = re.compile(r"\[[\d.]+ - [\d.]+\]\t(\w+)\t(\w+)\t\[")


@dataclass(frozen=True)
class Excerpt(MediaFile):
    """A stretch of a longer recording, cut when it is asked for.

    Args:
        type: "audio".
        path: The recording.
        data: None.
        start: Seconds.
        duration: Seconds.
    """

    start: float = 0.0
    duration: float = 0.0

    @property
    def identity(self) -> str:
        """File and place."""
        return f"{self.path}:{self.start}:{self.duration}"

    def read(self) -> bytes:
        """The stretch as a WAV file of the recording's rate.

        Raises:
            MediaError: If the recording does not open, or ends before the stretch.
        """
        try:
            with soundfile.SoundFile(str(self.path)) as file:
                # Whole samples as fairseq cuts them: both numbers are cut off, not rounded.
                file.seek(int(self.start * file.samplerate))
                wanted = int(self.duration * file.samplerate)
                samples = file.read(wanted, dtype="int16")
                rate = file.samplerate
        except (soundfile.SoundFileError, OSError, RuntimeError) as error:
            raise MediaError(f"'{self.path}': expected audio, got: {error}") from None
        if len(samples) < wanted:
            raise MediaError(
                f"'{self.path}': expected {self.duration} s from {self.start} s on, got {len(samples) / rate:.3f} s"
            )
        stream = io.BytesIO()
        soundfile.write(stream, samples, rate, format="WAV", subtype="PCM_16")
        return stream.getvalue()


@dataclass(frozen=True)
class Slice(MediaFile):
    """A file, or the bytes ``FILE:OFFSET:LENGTH`` of one, read when it is asked for.

    Args:
        type: "audio".
        path: The folder that holds the file.
        data: None.
        name: The file, perhaps with its stretch.
    """

    name: str = ""

    @property
    def identity(self) -> str:
        """Folder and name."""
        return f"{self.path}/{self.name}"

    def read(self) -> bytes:
        """The bytes.

        Raises:
            MediaError: If they are not there.
        """
        assert self.path is not None
        try:
            return read_slice(self.path, self.name)
        except SkipItemError as error:
            raise MediaError(f"'{self.path / self.name}': {error}") from None


class LibriSpeechReader(Reader):
    """``SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt`` beside FLAC files (https://www.openslr.org/12).

    Args:
        root: The benchmark's folder.
        folder: Of a split, below it.
    """

    def __init__(self, root: str | Path, folder: str) -> None:
        super().__init__(root)
        self.folder = folder

    @property
    def files(self) -> tuple[Path, ...]:
        """The transcripts, or the folder where there are none."""
        folder = below(self.root, self.folder)
        return tuple(sorted(folder.rglob("*.trans.txt"))) or (folder / "*.trans.txt",)

    def items(self) -> Iterator[Item]:
        """One per utterance."""
        for path in self.files:
            for number, line in enumerate(_text_lines(path), 1):
                utterance, _, text = line.partition(" ")
                if not text.strip():
                    raise BenchmarkError(f"'{path}' line {number}: expected an id and a transcript, got {line!r:.80}")
                files = [path.parent / (utterance + suffix) for suffix in AUDIO_SUFFIXES]
                audio = next((file for file in files if file.is_file()), files[0])
                speaker = utterance.split("-")[0]
                meta = {"speaker": speaker}
                yield Item(utterance, {}, {"audio": MediaFile("audio", audio)}, tidy(text), cluster=speaker, meta=meta)


class VoiceTsvReader(Reader):
    """Common Voice and CoVoST 2 TSV files (https://arxiv.org/abs/2007.10310): ``path, sentence``, ``translation``.

    Args:
        root: The benchmark's folder.
        file: The TSV.
        clips: Folder of the clips.
        translate: Whether the gold is the translation or the transcript.
    """

    def __init__(self, root: str | Path, file: str, clips: str = "clips", translate: bool = True) -> None:
        super().__init__(root)
        self.file, self.clips, self.translate = file, clips, translate

    @property
    def files(self) -> tuple[Path, ...]:
        """The TSV."""
        return (below(self.root, self.file),)

    def items(self) -> Iterator[Item]:
        """One per clip."""
        gold = "translation" if self.translate else "sentence"
        for row in _rows(self.files[0], {"path", "sentence", gold}):
            yield Item(
                key=row["path"],
                fields={},
                media={"audio": MediaFile("audio", below(self.root, f"{self.clips}/{row['path']}"))},
                answer=tidy(row[gold]),
                cluster=row.get("client_id") or row["path"],
                meta={"transcript": tidy(row["sentence"])},
            )


class MustCReader(Reader):
    """MuST-C (https://aclanthology.org/N19-1202): ``txt/SPLIT.yaml`` cuts the talks of ``wav/``, a text line each.

    Args:
        root: The benchmark's folder.
        folder: Of the split, such as ``en-de/data/tst-COMMON``.
        source: Ending of the transcripts.
        target: Ending of the translations.
    """

    def __init__(self, root: str | Path, folder: str, target: str, source: str = "en") -> None:
        super().__init__(root)
        self.folder, self.source, self.target = folder, source, target

    @property
    def files(self) -> tuple[Path, ...]:
        """Cuts, transcripts and translations."""
        folder = below(self.root, self.folder)
        return tuple(folder / "txt" / f"{folder.name}.{end}" for end in ("yaml", self.source, self.target))

    def items(self) -> Iterator[Item]:
        """One per cut."""
        cuts_file, transcripts_file, translations_file = self.files
        try:
            cuts = yaml.load(
                cuts_file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            )
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise BenchmarkError(f"'{cuts_file}': expected a YAML list of cuts, got {error}") from None
        texts = [read_lines(path) for path in (transcripts_file, translations_file)]
        if not isinstance(cuts, list) or {len(own) for own in texts} != {len(cuts)}:
            raise BenchmarkError(
                f"'{cuts_file}': expected a text for every cut, got {len(cuts or ())} cuts and "
                f"{len(texts[0])} and {len(texts[1])} lines"
            )
        wav = below(self.root, self.folder) / "wav"
        for number, (cut, transcript, translation) in enumerate(zip(cuts, *texts, strict=True)):
            try:
                talk, start, duration = str(cut["wav"]), float(cut["offset"]), float(cut["duration"])
            except (KeyError, TypeError, ValueError) as error:
                raise BenchmarkError(
                    f"'{cuts_file}' cut {number + 1}: expected wav, offset, duration: {error}"
                ) from None
            yield Item(
                key=f"{Path(talk).stem}/{number}",
                fields={},
                media={"audio": Excerpt("audio", below(wav, talk), start=start, duration=duration)},
                answer=tidy(translation),
                cluster=talk,
                meta={"transcript": tidy(transcript), "speaker": str(cut.get("speaker_id", ""))},
            )


class TrialsReader(Reader):
    """VoxCeleb's verification trials (https://www.robots.ox.ac.uk/~vgg/data/voxceleb/): ``LABEL FILE FILE`` per line.

    Args:
        root: The benchmark's folder.
        file: The trials.
        clips: Folder of the clips.
    """

    def __init__(self, root: str | Path, file: str, clips: str = "wav") -> None:
        super().__init__(root)
        self.file, self.clips = file, clips

    @property
    def files(self) -> tuple[Path, ...]:
        """The trials."""
        return (below(self.root, self.file),)

    def items(self) -> Iterator[Item]:
        """One per trial."""
        for first, second, match in self.trials():
            names = {"audio0": first, "audio1": second}
            yield Item(
                key=f"{first} {second}",
                fields={},
                media={n: MediaFile("audio", below(self.root, f"{self.clips}/{file}")) for n, file in names.items()},
                answer="yes" if match else "no",
                cluster=first.split("/")[0],
                meta={"match": match},
            )

    def trials(self) -> Iterator[tuple[str, str, bool]]:
        """(clip, clip, whether both have one speaker).

        Raises:
            BenchmarkError: If the file is missing or a line is no trial.
        """
        for number, line in enumerate(_text_lines(self.files[0]), 1):
            cells = line.split()
            if len(cells) != 3 or cells[0] not in ("0", "1"):
                raise BenchmarkError(f"'{self.files[0]}' line {number}: expected '0|1 FILE FILE', got {line!r:.80}")
            yield cells[1], cells[2], cells[0] == "1"


class IemocapReader(Reader):
    """IEMOCAP (https://sail.usc.edu/iemocap): ``SessionN/dialog/EmoEvaluation/*.txt`` and ``sentences/wav``.

    Args:
        root: The benchmark's folder.
        sessions: Which are asked; the field tests on each in turn.
        classes: The corpus's name of an emotion -> the word that stands for it; excitement usually counts as happy.
    """

    def __init__(self, root: str | Path, sessions: Sequence[int], classes: dict[str, str]) -> None:
        super().__init__(root)
        self.sessions, self.classes = tuple(sessions), dict(classes)

    @property
    def files(self) -> tuple[Path, ...]:
        """The evaluations, or a session's folder where there are none."""
        found: list[Path] = []
        for session in self.sessions:
            folder = self.root / f"Session{session}" / "dialog" / "EmoEvaluation"
            found += sorted(path for path in folder.glob("*.txt") if not path.name.startswith(".")) or [
                folder / "*.txt"
            ]
        return tuple(found)

    def items(self) -> Iterator[Item]:
        """One per utterance of one of the classes."""
        words = sorted(set(self.classes.values()))
        for path in self.files:
            session = path.parents[2]
            for line in _text_lines(path):
                match = _UTTERANCE.match(line)
                if match is None or match[2] not in self.classes:
                    continue
                name = match[1]
                wav = session / "sentences" / "wav" / name.rpartition("_")[0] / f"{name}.wav"
                yield Item(
                    key=name,
                    fields={"classes": ", ".join(words)},
                    media={"audio": MediaFile("audio", wav)},
                    answer=self.classes[match[2]],
                    cluster=path.stem,
                    meta={"options": words, "session": session.name},
                )


class SpokenQaReader(Reader):
    """WavLLM's TSV (https://arxiv.org/abs/2404.00656): ``id, audio, n_frames, prompt, tgt_text, with_speech``.

    Its Gaokao set asks multiple-choice questions about a dialogue: options stand in the prompt, the letter in
    ``tgt_text``.

    Args:
        root: The benchmark's folder.
        file: The TSV.
        media: Folder of the audio; a cell may be FILE or FILE:OFFSET:LENGTH.
        options: How many options a question has; 0 for free answers.
    """

    def __init__(self, root: str | Path, file: str, media: str = ".", options: int = 3) -> None:
        super().__init__(root)
        self.file, self.media, self.options = file, media, options

    @property
    def files(self) -> tuple[Path, ...]:
        """The TSV."""
        return (below(self.root, self.file),)

    def items(self) -> Iterator[Item]:
        """One per row."""
        for row in _rows(self.files[0], WANTED):
            gold = tidy(row["tgt_text"])
            meta: dict[str, Any] = {"letters": "ABCDEFGHIJ"[: self.options]} if self.options else {"answers": [gold]}
            yield Item(
                key=row["id"],
                fields={"question": row["prompt"].replace("\\n", "\n").strip()},
                media={"audio": Slice("audio", below(self.root, self.media), name=row["audio"])},
                answer=gold,
                cluster=row["audio"],
                meta=meta,
            )


def _rows(path: Path, wanted: set[str]) -> Iterator[dict[str, str]]:
    tally = Tally()
    try:
        yield from read_tsv(path, wanted, tally)
    except ConversionError as error:
        raise BenchmarkError(str(error)) from None
    if tally.skipped:  # a corpus may lose a row, a benchmark may not
        (reason, (place, *_)), *_ = tally.examples.items()
        raise BenchmarkError(f"'{path}' {place}: {reason}")


def _text_lines(path: Path) -> list[str]:
    return [line for line in read_lines(path) if line.strip()]
