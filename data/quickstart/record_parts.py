"""What the quickstart's records have in common: random numbers per record, source, license, media members."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch

from data.drafts import Draft, Origin
from data.media import encode_flac
from data.quickstart.scene_turns import Turn, object_meta, png
from data.quickstart.scenes import Scene
from data.quickstart.synthesis.espeak import SAMPLE_RATE
from data.records import Part, Record

SOURCES = {
    "image": ("UCI optical recognition of handwritten digits, through scikit-learn", "CC-BY-4.0"),
    "audio": ("synthesised with espeak-ng", "Apache-2.0"),
    "graph": ("import graph of the Python standard library", "PSF-2.0"),
    "text": ("composed by a grammar", "Apache-2.0"),
}


def record_rng(seed: int, split: str, prefix: str, index: int) -> np.random.Generator:
    """Random numbers of one record, whatever shard it lies in."""
    return np.random.default_rng([seed, zlib.crc32(f"{split}/{prefix}".encode()), index])


def bucket(text: str) -> str:
    """The split that a text belongs to, by its hash: 70 % train, 8 % val, 22 % test."""
    place = zlib.crc32(text.encode()) % 50
    return "train" if place < 35 else "val" if place < 39 else "test"


class QuickstartDraft(Draft):
    """A record of the quickstart while it is being put together.

    Args:
        prefix: Shard prefix, and the record's task.
        split: Its split.
        index: Its number within prefix and split.
    """

    def __init__(self, prefix: str, split: str, index: int) -> None:
        super().__init__(f"{prefix}_{index:06d}", prefix, Origin("", "", split))

    @property
    def split(self) -> str:
        """Its split."""
        return self.origin.split

    def add_scene(self, scene: Scene) -> None:
        """The image "image", and what it shows in ``meta.objects``."""
        self.add_image(png(scene.pixels()))
        self.meta["objects"] = object_meta(scene)

    def add_clip(self, waveform: np.ndarray) -> None:
        """The clip "audio" (samples,) at 16 kHz."""
        self.add_audio(encode_flac(torch.from_numpy(waveform), SAMPLE_RATE))

    def ask(self, text: str, reply: Sequence[Part], media: Sequence[str] = ()) -> None:
        """A user turn, media first, and the assistant's reply."""
        self.user(*(self.medium(name) for name in media), *filter(None, [text]))
        self.assistant(*reply)

    def add_turn(self, turn: Turn, media: Sequence[str] = ()) -> None:
        """A turn about a scene, with its targets."""
        self.ask(turn.text, turn.reply, media)
        self.targets |= turn.targets
        self.members |= turn.members

    def finish(self) -> tuple[Record, dict[str, bytes]]:
        """The record and its members; source and license follow from its media."""
        kinds = [kind for kind in SOURCES if any(item.type == kind for item in self.media.values())] or ["text"]
        if "image" not in kinds and any(item.type == "image" for item in self.targets.values()):
            kinds.insert(0, "image")
        source = "; ".join(SOURCES[kind][0] for kind in kinds)
        terms = " AND ".join(dict.fromkeys(SOURCES[kind][1] for kind in kinds))
        self.origin = Origin(source, terms, self.split)
        return super().finish()
