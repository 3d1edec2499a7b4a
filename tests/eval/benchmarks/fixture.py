"""What a fixture is: a few questions of our own in a benchmark's official format, and what must come out."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image


@dataclass(frozen=True)
class Fixture:
    """Questions of a benchmark.

    Args:
        make: Writes its files into the benchmark's folder.
        count: How many samples there are.
        constant: Metric -> what the best constant reply scores.
        gold: Metric -> what the gold scores where that is not 1, or 0 of an error.
        other: File -> its copy, which stands for the answers of another split; the constant reply is chosen on those.
        again: Makes an id occur twice in the files.
        no_ids: Why that cannot be: what the format has instead of ids.
        no_media: Whether samples show media that lie in the annotation files, or none.
    """

    make: Callable[[Path], None]
    count: int
    constant: Mapping[str, float]
    gold: Mapping[str, float] = field(default_factory=dict)
    again: Callable[[Path], None] | None = None
    other: Mapping[str, str] = field(default_factory=dict)
    no_ids: str = ""
    no_media: bool = False


def picture(seed: int = 0, width: int = 12, height: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def base64_picture(seed: int = 0) -> str:
    return base64.b64encode(picture(seed)).decode("ascii")


def clip(seconds: float = 0.05, kind: str = "WAV", seed: int = 0) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(16_000 * seconds))
    soundfile.write(stream, noise, 16_000, format=kind, subtype="PCM_16")
    return stream.getvalue()


def write(path: Path, content: bytes | str | object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def write_lines(path: Path, rows: Sequence[object]) -> None:
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_tsv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]), delimiter="\t")
        table.writeheader()
        table.writerows(rows)


def repeat(file: str, rows: str | None = None, last: bool = False) -> Callable[[Path], None]:
    """Adds the first (or last) row of a JSON list, of JSON lines, or of lines with a header, once more."""

    def change(folder: Path) -> None:
        path = folder / file
        try:
            value = json.loads(path.read_bytes())
        except ValueError:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            path.write_text("".join([*lines, lines[-1]]), encoding="utf-8")
            return
        listed = value[rows] if rows is not None else value
        listed.append(listed[-1 if last else 0])
        path.write_text(json.dumps(value), encoding="utf-8")

    return change


def repeat_entry(file: str) -> Callable[[Path], None]:
    """Writes the first entry of a JSON object once more: a parser of JSON would keep the last and say nothing."""

    def change(folder: Path) -> None:
        text = (folder / file).read_text(encoding="utf-8").rstrip()
        name, row = next(iter(json.loads(text).items()))
        write(folder / file, f"{text[:-1]}, {json.dumps(name)}: {json.dumps(row)}}}")

    return change


def copied(make: Callable[[Path], None], file: str, other: str, drop: Sequence[str] = ()) -> Callable[[Path], None]:
    """Files as another maker writes them, one of them under the name of a split whose answers a server holds.

    Args:
        make: The other maker.
        file: What it writes.
        other: Its new name.
        drop: Entries that rows lose.
    """

    def change(folder: Path) -> None:
        make(folder)
        value = json.loads((folder / file).read_bytes())
        rows = value if isinstance(value, list) else value.get("data") or value.get("questions") or value["images"]
        for row in rows:
            for name in drop:
                row.pop(name, None)
        (folder / file).unlink()
        write(folder / other, value)

    return change
