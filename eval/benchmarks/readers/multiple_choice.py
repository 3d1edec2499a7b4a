"""Multiple choice in its own forms: ScienceQA, MMBench's rotations, and media placed among the words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.benchmarks.benchmark import BenchmarkError
from eval.benchmarks.prompt import LETTERS
from eval.benchmarks.reader import Item, MediaFile, Shown, below, read_json
from eval.benchmarks.readers.rows import JsonReader, Row, TableReader
from eval.metrics.answers.choices import rotations
from eval.metrics.answers.mmmu import DOMAINS

_ROTATION = 1_000_000
_SLOT = re.compile(r"<(image|video)>")
_NUMBERED = re.compile(r"<image (\d)>")


class ScienceQaReader(JsonReader):
    """ScienceQA (https://scienceqa.github.io): ``problems.json``, ``pid_splits.json``; ``meta.modality`` is IMG or TXT.

    Args:
        root: The benchmark's folder.
        split: Of ``pid_splits.json``.
        **columns: As in :class:`eval.benchmarks.readers.rows.RowsReader`.
    """

    def __init__(self, root: str | Path, split: str = "test", **columns: Any) -> None:
        super().__init__(root, ["problems.json"], **columns)
        self.split = split

    @property
    def files(self) -> tuple[Path, ...]:
        """Problems and splits."""
        return (*super().files, below(self.root, "pid_splits.json"))

    def rows(self) -> Iterator[tuple[str, Row]]:
        """The problems of the split, in its order."""
        splits = read_json(self.files[-1])
        if not isinstance(splits, Mapping) or self.split not in splits:
            raise BenchmarkError(f"'{self.files[-1]}': expected the split '{self.split}', got {sorted(splits)}")
        problems = {str(row["_id"]): (place, row) for place, row in super().rows()}
        for name in map(str, splits[self.split]):
            if name not in problems:
                raise BenchmarkError(f"'{self.files[0]}': expected the problem '{name}' of the split, got none")
            place, row = problems[name]
            yield place, {**row, "split": self.split, "modality": "IMG" if row.get("image") else "TXT"}


class RotatedReader(TableReader):
    """MMBench's TSV (https://github.com/open-compass/MMBench): base64 images, options A to D, indices.

    ``meta.group`` is the index modulo a million, ``meta.rotation`` says which shift of its options a question has, and
    ``meta.rotations`` how many there are.

    Args:
        root: The benchmark's folder.
        file: The TSV. If it holds the rotations itself (indices of a million and more), those are asked.
        circular: Ask every rotation, or the question as it is only.
        as_filed: Ask the rows of the file and nothing else, as a server that holds their answers expects.
        **columns: As in :class:`eval.benchmarks.readers.rows.RowsReader`.
    """

    def __init__(
        self, root: str | Path, file: str, circular: bool = True, as_filed: bool = False, **columns: Any
    ) -> None:
        super().__init__(root, file, **columns)
        self.circular, self.as_filed = circular, as_filed

    def items(self) -> Iterator[Item]:
        """Rotations of a question follow one another, or stand where the file has them."""
        counts: dict[int, int] = {}
        self._rotated = False
        for place, row in super().rows():
            try:
                counts[_group(row)] = counts.get(_group(row), 0) + 1
                self._rotated = self._rotated or int(row["index"]) >= _ROTATION
            except (KeyError, ValueError):
                raise BenchmarkError(f"{place}: expected a whole number 'index', got {row.get('index')!r}") from None
        self._counts = counts
        yield from super().items()

    def rows(self) -> Iterator[tuple[str, Row]]:
        """The file's rows; an image cell that is the index of another row stands for that row's image."""
        images: dict[str, Any] = {}
        for place, row in super().rows():
            cell = row.get("image")
            if isinstance(cell, str) and cell.isdigit() and len(cell) < 20:
                if cell not in images:
                    raise BenchmarkError(f"{place}: expected the image of an earlier row, got the index {cell}")
                row = {**row, "image": images[cell]}
            else:
                images[str(row.get("index"))] = cell
            yield place, row

    def items_of(self, row: Row) -> Iterator[Item]:
        """The question as the file has it, or all its rotations."""
        group, given = _group(row), int(row["index"]) // _ROTATION
        for item in super().items_of(row):
            options = item.meta["options"]
            if self._rotated or self.as_filed or not self.circular:
                if given and not self.circular and not self.as_filed:
                    return
                count = self._counts[group] if self.circular or self.as_filed else 1
                yield replace(item, meta={**item.meta, "group": group, "rotation": given, "rotations": count})
                continue
            gold = LETTERS.index(item.answer) if item.answer else 0
            for shift, (shifted, place) in enumerate(rotations(options, gold)):
                yield replace(
                    item,
                    key=str(group + shift * _ROTATION),
                    fields={**item.fields, "options": shifted},
                    answer=LETTERS[place] if item.answer else "",
                    meta={
                        **item.meta,
                        "options": shifted,
                        "group": group,
                        "rotation": shift,
                        "rotations": len(options),
                    },
                )


class SlottedReader(JsonReader):
    """Questions with ``<image>`` and ``<video>`` where a medium belongs, such as PhysBench's.

    Args:
        root: The benchmark's folder.
        files: As in :class:`eval.benchmarks.readers.rows.JsonReader`.
        media_names: Entry with the list of files, in the order of the slots.
        folders: "image" and "video" -> folder.
        **columns: As in :class:`eval.benchmarks.readers.rows.RowsReader`.
    """

    def __init__(
        self,
        root: str | Path,
        files: Sequence[str],
        media_names: str = "file_name",
        folders: Mapping[str, str] | None = None,
        **columns: Any,
    ) -> None:
        super().__init__(root, files, **columns)
        self.media_names = media_names
        self.folders = dict(folders or {"image": "image", "video": "video"})

    def items_of(self, row: Row) -> Iterator[Item]:
        """One question, its media in their slots."""
        names = list(row[self.media_names])
        for item in super().items_of(row):
            question = str(item.fields["question"])
            slots = list(_SLOT.finditer(question))
            if len(slots) != len(names):
                raise ValueError(f"expected a file for each of {len(slots)} slots, got {len(names)}")
            media: dict[str, MediaFile] = {}
            pieces: list[str | Shown] = []
            end = 0
            for number, (slot, name) in enumerate(zip(slots, names, strict=True)):
                kind: Any = slot[1]
                shown = f"{kind}{number}"
                media[shown] = MediaFile(kind, below(self.root, f"{self.folders[kind]}/{name}"))
                pieces += [question[end : slot.start()], Shown(shown)]
                end = slot.end()
            yield replace(item, fields={**item.fields, "question": (*pieces, question[end:])}, media=media)


class MmmuReader(TableReader):
    """MMMU (https://mmmu-benchmark.github.io) as parquet: ``<image 1>`` in questions and options, open questions too.

    An open question stays one: its gold never becomes an option.

    Args:
        root: The benchmark's folder.
        file: Pattern of the parquet files.
        instructions: "multiple-choice" and "open" -> the prompt's field ``instruction``.
        answers: Whether the files hold answers; those of the test split say "?".
    """

    def __init__(self, root: str | Path, file: str, instructions: Mapping[str, str], answers: bool = True) -> None:
        super().__init__(root, file, key="id", meta=("question_type", "subfield", "topic_difficulty", "img_type"))
        self.instructions, self.answers = dict(instructions), answers

    def items_of(self, row: Row) -> Iterator[Item]:
        """One question with its images in their places."""
        kind = str(row["question_type"])
        if kind not in self.instructions:
            raise ValueError(f"question_type: expected one of {sorted(self.instructions)}, got '{kind}'")
        media = {f"image{n}": self._held("image", row[f"image_{n}"]) for n in range(1, 8) if row.get(f"image_{n}")}
        options = _literal_list(row.get("options"), "options")
        for name in sorted({f"image{number}" for number in _NUMBERED.findall(f"{row['question']} {options}")}):
            media.setdefault(name, MediaFile("image", missing=f"expected its image in '{name}', got an empty cell"))
        fields: dict[str, Any] = {
            "question": _numbered(str(row["question"])),
            "options": [_numbered(option) for option in options],
            "instruction": self.instructions[kind],
        }
        subject = "_".join(str(row["id"]).split("_")[1:-1])
        domain = next((name for name, own in DOMAINS.items() if subject in own), "other")
        meta = {name: row[name] for name in self.meta if row.get(name) is not None}
        meta |= {"subject": subject, "domain": domain, "options": options}
        answer = str(row.get("answer") or "") if self.answers else ""
        if kind == "open" and answer:
            meta["answers"] = _literal_list(answer, "answer") if answer.startswith("[") else [answer]
            answer = meta["answers"][0]
        yield Item(str(row["id"]), fields, media, answer, meta=meta)


def _group(row: Row) -> int:
    return int(row["index"]) % _ROTATION


def _literal_list(value: Any, name: str) -> list[str]:
    """A list, or Python's notation of one, as the data set writes it."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value) if value.strip() else []
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"{name}: expected a list in Python's notation, got {value[:60]!r}") from None
    if not isinstance(value, list | tuple | None.__class__):
        raise ValueError(f"{name}: expected a list, got {type(value).__name__}")
    return [str(item) for item in value or ()]


def _numbered(text: str) -> str | tuple[str | Shown, ...]:
    pieces: list[str | Shown] = []
    end = 0
    for slot in _NUMBERED.finditer(text):
        pieces += [text[end : slot.start()], Shown(f"image{slot[1]}")]
        end = slot.end()
    return (*pieces, text[end:]) if pieces else text
