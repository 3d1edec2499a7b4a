"""What the quickstart's records have in common: random numbers per record, source, license, media members."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from data.media import encode_flac, encode_graph
from data.quickstart.espeak import SAMPLE_RATE
from data.quickstart.scene_turns import Turn, object_meta, png
from data.quickstart.scenes import SCENE_SIZE, Scene
from data.records import Media, Message, Part, Record, Target
from layers.media import Graph

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


@dataclass
class Draft:
    """A record while it is being put together, with its members.

    Args:
        prefix: Shard prefix, and the record's task.
        split: Its split.
        index: Its number within prefix and split.
    """

    prefix: str
    split: str
    index: int
    media: dict[str, Media] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    targets: dict[str, Target] = field(default_factory=dict)
    members: dict[str, bytes] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def add_scene(self, scene: Scene) -> None:
        """The image "image", and what it shows in ``meta.objects``."""
        self.media["image"] = Media("image", "image.png", (SCENE_SIZE, SCENE_SIZE))
        self.members["image.png"] = png(scene.pixels())
        self.meta["objects"] = object_meta(scene)

    def add_audio(self, waveform: np.ndarray) -> None:
        """The clip "audio" (samples,) at 16 kHz."""
        self.media["audio"] = Media("audio", "audio.flac", (len(waveform),), SAMPLE_RATE)
        self.members["audio.flac"] = encode_flac(torch.from_numpy(waveform), SAMPLE_RATE)

    def add_graph(self, name: str, graph: Graph) -> None:
        """A graph member."""
        self.media[name] = Media("graph", f"{name}.json", (graph.num_nodes,))
        self.members[f"{name}.json"] = encode_graph(graph)

    def ask(self, text: str, reply: Sequence[Part], media: Sequence[str] = ()) -> None:
        """A user turn, media first, and the assistant's reply."""
        parts = [Part(self.media[name].type, media=name) for name in media]
        content = (*parts, Part("text", text=text)) if text else tuple(parts)
        self.messages += [Message("user", content), Message("assistant", tuple(reply))]

    def add_turn(self, turn: Turn, media: Sequence[str] = ()) -> None:
        """A turn about a scene, with its targets."""
        self.ask(turn.text, turn.reply, media)
        self.targets |= turn.targets
        self.members |= turn.members

    def finish(self) -> tuple[Record, dict[str, bytes]]:
        """The record and its members."""
        kinds = [kind for kind in SOURCES if any(item.type == kind for item in self.media.values())] or ["text"]
        if "image" not in kinds and any(item.type == "image" for item in self.targets.values()):
            kinds.insert(0, "image")
        record = Record(
            key=f"{self.prefix}_{self.index:06d}",
            task=self.prefix,
            source="; ".join(SOURCES[kind][0] for kind in kinds),
            license=" AND ".join(dict.fromkeys(SOURCES[kind][1] for kind in kinds)),
            split=self.split,
            messages=tuple(self.messages),
            media=self.media,
            targets=self.targets,
            meta=self.meta,
        )
        return record, self.members
