"""Small media in real formats, and the command run as a user runs it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from data.__main__ import main
from data.commands.validate import Findings, check_shard
from data.shards import Sample, expand, read_samples

Convert = Callable[..., list[Sample]]


def image_bytes(width: int = 12, height: int = 8, seed: int = 0, kind: str = "PNG", **options: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def audio_bytes(samples: int = 800, rate: int = 16_000, kind: str = "FLAC", seed: int = 0) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, samples)
    soundfile.write(stream, noise, rate, format=kind, subtype="PCM_16")
    return stream.getvalue()


def write(path: Path, content: bytes | str | object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def report(out: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((out / "conversion.json").read_text())
    return value


@pytest.fixture
def convert(tmp_path: Path) -> Convert:
    """Run ``python -m data convert`` and read back what it wrote; every shard must pass ``validate``."""

    def run(name: str, source: Path, *arguments: str, status: int = 0, out: Path | None = None) -> list[Sample]:
        out = out or tmp_path / "out"
        command = ["convert", name, str(source), "--out", str(out), "--license", "CC0-1.0", *arguments]
        assert main(command) == status
        if not list(out.glob("*/*.tar")):
            return []
        findings = Findings()
        for path in expand(str(out / "*" / "*.tar")):
            check_shard(path, findings)
        assert findings.errors == []
        return list(read_samples(str(out / "*" / "*.tar")))

    return run
