"""The corpora that all loaders read: crops of real photographs and stretches of sound, with questions and boxes."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from data.drafts import Draft, Origin
from data.shards import ShardWriter
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskTable

SIDE = 224
SECONDS = 10
SAMPLE_RATE = 16_000
PER_SHARD = {"image": 128, "audio": 64}
TASKS: dict[str, Any] = {
    "num_bins": 1000,
    "tasks": [{"name": "ground", "head": "boxes", "needs": ["image"], "payload": ["prompt", "regions"]}],
}
_WORDS = (
    "the a one two small large red green blue old new man woman child dog cat bird tree house street car bicycle "
    "window door table chair garden river mountain sky is are stands sits walks runs looks holds under over beside "
    "behind before near far with without and or in on of to from slowly quickly today again never always left right"
).split()


def write_corpus(directory: Path, kind: str, samples: int, seed: int = 0) -> None:
    """Write ``DIR/KIND/tar`` unless it is there already, and the tokenizer; another number of samples replaces it.

    Args:
        directory: Of the benchmark's data.
        kind: "image" (JPEG, 224 pixels, quality 90) or "audio" (FLAC, 10 seconds, 16 kHz).
        samples: How many.
        seed: Everything follows from it.
    """
    if not (directory / "tokenizer" / "tokenizer.json").is_file():
        words = [" ".join(_WORDS)] * 4
        save_tokenizer(train_tokenizer(words, 512, TaskTable.from_dict(TASKS)), directory / "tokenizer")
    done = directory / kind / f"{samples}-samples-{PER_SHARD[kind]}-per-shard"
    if done.is_file():
        return
    shutil.rmtree(directory / kind, ignore_errors=True)  # what rivals made of another corpus, too
    rng = np.random.default_rng(seed)
    photographs = _photographs() if kind == "image" else []
    with ShardWriter(directory / kind / "tar", "shard", PER_SHARD[kind]) as writer:
        for number in range(samples):
            draft = Draft(f"{kind}_{number:06d}", kind, Origin("made for a benchmark", "CC0-1.0", "train"))
            if kind == "image":
                _add_picture(draft, photographs[int(rng.integers(len(photographs)))], rng)
            else:
                draft.add_audio(_sound(rng), "clip")
                draft.user(draft.medium("clip"), _sentence(rng, 12))
                draft.assistant(_sentence(rng, 24))
            writer.write(*draft.finish())
    done.touch()


def _photographs() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(image) for image in load_sample_images().images]


def _add_picture(draft: Draft, photograph: Image.Image, rng: np.random.Generator) -> None:
    """A crop of a random size, brought to 224 pixels; a question; an answer that points at a box."""
    side = int(rng.integers(SIDE, min(photograph.size) + 1))
    left, top = (int(rng.integers(0, length - side + 1)) for length in photograph.size)
    crop = photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    stream = io.BytesIO()
    crop.save(stream, "JPEG", quality=90)
    draft.add_image(stream.getvalue(), "photo")
    draft.user(draft.medium("photo"), _sentence(rng, 12))
    corner, size = rng.uniform(0, SIDE / 2, 2), rng.uniform(8, SIDE / 2, 2)
    box = [float(value) for value in (*corner, *(corner + size))]
    draft.add_target("box", box)
    draft.targets = {"place": draft.targets.pop("t0")}
    draft.assistant(_sentence(rng, 24), draft.call("ground", "dog", "place", box))


def _sound(rng: np.random.Generator) -> bytes:
    """Ten seconds of wandering tones and noise: about as hard to compress as speech."""
    time = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    pitch = 120 + 60 * np.interp(time, np.linspace(0, SECONDS, 40), rng.standard_normal(40))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    loud = np.interp(time, np.linspace(0, SECONDS, 80), rng.uniform(0, 1, 80) ** 2)
    wave = loud * sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 12))
    stream = io.BytesIO()
    waveform = 0.15 * wave + 0.003 * rng.standard_normal(len(time))
    soundfile.write(stream, np.clip(waveform, -1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def _sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(_WORDS[int(place)] for place in rng.integers(0, len(_WORDS), words))
