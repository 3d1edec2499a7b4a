"""Files of one's own, asked without references: shards, folders of media, JSON lines of questions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from data.records import Media, Message, Part, Record
from data.shards import Sample, expand, read_samples
from eval.benchmarks.benchmark import Benchmark, BenchmarkError
from eval.benchmarks.reader import MediaFile, MediaMembers, below, read_json_lines
from eval.prediction import Prediction

ENDINGS: Mapping[str, tuple[str, ...]] = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    "audio": (".wav", ".flac", ".ogg", ".mp3"),
    "video": (".mp4", ".mkv", ".mov", ".avi", ".webm"),
}
_QUESTION = ("question", "prompt", "text")
NO_REFERENCES = "these files were asked without references, so there is nothing to score"


class InputFiles(Benchmark):
    """Questions that nothing is known about but how to ask them.

    Args:
        name: For the log.
        inputs: Shards (``*.tar``, globs), folders or single files of media, or ``*.jsonl`` with a question per line
            (``question``, and file names beside it under ``image``, ``audio``, ``video`` or ``graph``, one or a list;
            ``id`` if there are ids).
        prompt: What is asked about every file of media; shards and JSON lines have their own questions.
    """

    def __init__(self, name: str, inputs: Sequence[str | Path], prompt: str = "") -> None:
        self.inputs = [str(item) for item in inputs]
        self.prompt = prompt
        folder = Path(self.inputs[0]).parent if self.inputs else Path()
        super().__init__(name, (), f"{name}/inputs@1", folder, without={"constant": NO_REFERENCES})

    @property
    def described(self) -> Mapping[str, Any]:
        """The constructor's arguments."""
        return {"inputs": self.inputs, "prompt": self.prompt}

    @property
    def data_sha256(self) -> str:
        """Of what is asked: all bytes of JSON lines, names and sizes of other files, and the prompt."""
        digest = hashlib.sha256(self.prompt.encode())
        for path in self._paths():
            digest.update(f"\0{path.name}\0{path.stat().st_size}\0".encode())
            if path.suffix == ".jsonl":
                digest.update(path.read_bytes())
        return digest.hexdigest()

    def records(self) -> Iterator[Sample]:
        """Samples without an assistant's turn, except those of shards."""
        seen: set[str] = set()
        for path in self._paths():
            if path.suffix == ".tar":
                samples: Iterable[Sample] = read_samples(str(path))
            elif path.suffix == ".jsonl":
                samples = self._lines(path)
            else:
                samples = [self._file(path)]
            for sample in samples:
                if sample.key in seen:
                    raise BenchmarkError(f"'{path}': expected every key once, got '{sample.key}' again")
                seen.add(sample.key)
                yield sample

    def score(self, predictions: Iterable[Prediction]) -> NoReturn:
        """There is nothing to score by.

        Raises:
            BenchmarkError: Always.
        """
        raise BenchmarkError(f"{self.name}: {NO_REFERENCES}")

    def right(self, prediction: Prediction) -> bool:
        """Whether the reply parses."""
        return not prediction.failed

    @property
    def constant_na(self) -> str:
        """There are no references."""
        return NO_REFERENCES

    def constant(self, prediction: Prediction) -> NoReturn:
        """There is nothing to choose it by.

        Raises:
            BenchmarkError: Always.
        """
        raise BenchmarkError(f"{self.name}: {NO_REFERENCES}")

    def _paths(self) -> list[Path]:
        paths: list[Path] = []
        for text in self.inputs:
            path = Path(text)
            if path.is_dir() and not any(path.glob("*.tar")):
                found = sorted(item for item in path.rglob("*") if _kind(item) or item.suffix == ".jsonl")
                if not found:
                    raise BenchmarkError(f"'{path}': expected shards, media or JSON lines in the folder, got none")
                paths += found
            elif path.is_file() and (path.suffix in (".jsonl", ".tar") or _kind(path)):
                paths.append(path)
            elif path.is_file():
                known = ", ".join(ending for endings in ENDINGS.values() for ending in endings)
                raise BenchmarkError(f"'{path}': expected one of {known}, .tar or .jsonl")
            else:
                paths += [Path(item) for item in expand(text)]
        return paths

    def _file(self, path: Path) -> Sample:
        kind = _kind(path)
        if not self.prompt.strip() and kind != "audio":
            raise BenchmarkError(f"'{path}': expected a prompt to ask about it (--prompt), got none")
        parts = [Part(kind, media=kind), *([Part("text", text=self.prompt)] if self.prompt.strip() else [])]
        return self._sample(str(path), parts, {kind: MediaFile(kind, path)})  # type: ignore[arg-type]

    def _lines(self, path: Path) -> Iterator[Sample]:
        for number, row in read_json_lines(path):
            media: dict[str, MediaFile] = {}
            parts: list[Part] = []
            for kind in ("image", "video", "audio", "graph"):
                value = row.get(kind, row.get(f"{kind}s"))
                for index, file in enumerate(value if isinstance(value, list) else [] if value is None else [value]):
                    media[f"{kind}{index}"] = MediaFile(kind, below(path.parent, str(file)))
                    parts.append(Part(kind, media=f"{kind}{index}"))
            question = next((str(row[name]) for name in _QUESTION if row.get(name)), self.prompt)
            if not question.strip() and "audio" not in {item.type for item in media.values()}:
                raise BenchmarkError(f"'{path}' line {number}: expected one of {_QUESTION}, got {sorted(row)}")
            parts += [Part("text", text=question)] if question.strip() else []
            key = next(
                (str(row[name]) for name in ("id", "question_id", "key") if name in row), f"{path.name}:{number}"
            )
            yield self._sample(key, parts, media)

    def _sample(self, key: str, parts: Sequence[Part], media: Mapping[str, MediaFile]) -> Sample:
        files = {name: f"{name}{item.path.suffix if item.path else ''}" for name, item in media.items()}
        record = Record(
            key=key,
            task=self.name,
            source="",
            license="",
            split=self.split,
            messages=(Message("user", tuple(parts)),),
            media={name: Media(item.type, files[name], ()) for name, item in media.items()},
        )
        return Sample(key, record, MediaMembers({files[name]: item for name, item in media.items()}))


def _kind(path: Path) -> str:
    found: Any = next((kind for kind, endings in ENDINGS.items() if path.suffix.lower() in endings), "")
    return str(found)
