"""What a build consists of: record counts, shards, and which maker writes which."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from data.quickstart import graphs, images, routing, speech, texts
from data.quickstart.modules import ModuleGraph
from data.quickstart.synthesis import espeak
from data.records import RECORD_VERSION, Record
from data.shards import ShardWriter

SAMPLES_PER_SHARD = 500
TRAIN_COUNTS = {
    "texts": 8_000,
    "look_ups": 8_000,
    "captions": 4_000,
    "scenes": 10_000,
    "draw": 4_000,
    "speech": 7_000,
    "spoken_images": 3_500,
    "graphs": 5_000,
}
TEST_COUNTS = {
    "image_qa": 700,
    "box": 500,
    "mask": 500,
    "draw": 500,
    "edit": 500,
    "caption": 500,
    "asr": 600,
    "translation": 500,
    "speakers": 500,
    "spoken_facts": 500,
    "spoken_image_qa": 500,
    "node_family": 500,
    "link": 500,
    "match": 500,
    "routing": 2_000,
}
Maker = Callable[[str, int, int], tuple[Record, dict[str, bytes]]]
_MAKERS: dict[str, Maker] = {
    "captions": images.captions,
    "scenes": images.scenes,
    "draw": images.draw,
    "image_qa": images.image_qa,
    "box": images.box,
    "mask": images.mask,
    "edit": images.edit,
    "caption": images.caption,
    "texts": texts.texts,
    "look_ups": texts.look_ups,
    "speech": speech.speech,
    "spoken_images": speech.spoken_images,
    "asr": speech.asr,
    "translation": speech.translation,
    "speakers": speech.speakers,
    "spoken_facts": speech.spoken_facts,
    "spoken_image_qa": speech.spoken_image_qa,
}
_GRAPH_MAKERS: dict[str, Callable[..., tuple[Record, dict[str, bytes]]]] = {
    "graphs": graphs.graphs,
    "node_family": graphs.node_family,
    "link": graphs.link,
    "match": graphs.match,
    "routing": routing.routing,
}


@dataclass(frozen=True)
class Job:
    """One shard to write.

    Args:
        split: Its split.
        prefix: Its prefix.
        shard: Its number.
        start: Index of its first record.
        stop: One past its last.
    """

    split: str
    prefix: str
    shard: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Its path below the output directory."""
        return f"{self.split}/{self.prefix}-{self.shard:06d}.tar"

    @property
    def group(self) -> str:
        """The progress bar that it counts for."""
        return f"{self.split}/{self.prefix}" if self.split == "train" else self.split


@dataclass(frozen=True)
class Written:
    """A finished shard.

    Args:
        name: Its path below the output directory.
        samples: Its records.
        size: Its bytes.
        sha256: Of its bytes.
    """

    name: str
    samples: int
    size: int
    sha256: str


def counts(scale: float) -> dict[str, dict[str, int]]:
    """Records per split and prefix."""
    tests = {name: max(round(count * scale), 1) for name, count in TEST_COUNTS.items()}
    return {
        "train": {name: max(round(count * scale), 1) for name, count in TRAIN_COUNTS.items()},
        "val": {name: max(round(count * scale / 5), 1) for name, count in TEST_COUNTS.items()},
        "test": tests,
    }


def jobs(scale: float) -> list[Job]:
    """All shards of a build, the slowest kinds first."""
    made = [
        Job(split, prefix, start // SAMPLES_PER_SHARD, start, min(start + SAMPLES_PER_SHARD, count))
        for split, prefixes in counts(scale).items()
        for prefix, count in prefixes.items()
        for start in range(0, count, SAMPLES_PER_SHARD)
    ]
    order = {"spoken_images": 0, "speech": 1, "scenes": 2}
    return sorted(made, key=lambda job: (job.split != "train", order.get(job.prefix, 3), job.name))


def write_shard(job: Job, seed: int, modules: ModuleGraph, directory: str) -> Written:
    """Write one shard below a directory; it gets its name when it is complete.

    Args:
        job: Which.
        seed: Seed of the build.
        modules: The import graph.
        directory: The output directory.
    """
    torch.set_num_threads(1)
    espeak.restart()  # a shard depends on no other
    maker = _MAKERS[job.prefix] if job.prefix in _MAKERS else partial(_GRAPH_MAKERS[job.prefix], modules)
    final = Path(directory, job.name)
    staging = final.with_suffix(".building")
    shutil.rmtree(staging, ignore_errors=True)
    with ShardWriter(staging, job.prefix, SAMPLES_PER_SHARD) as writer:
        for index in range(job.start, job.stop):
            writer.write(*maker(job.split, index, seed))
    (path,) = writer.paths
    data = path.read_bytes()
    os.replace(path, final)
    staging.rmdir()
    return Written(job.name, job.stop - job.start, len(data), hashlib.sha256(data).hexdigest())


def fingerprint(seed: int, scale: float, modules: ModuleGraph) -> str:
    """A hash of what decides the shards' bytes: arguments, the generators' code, interpreter, libraries.

    How records and media are written elsewhere counts by ``RECORD_VERSION`` alone, so that work on the readers does
    not age the shards.
    """
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in [*sorted(here.rglob("*.py")), here / "modules.txt"]:
        if path.name != "build.py":
            digest.update(path.read_bytes())
    names = ("numpy", "pillow", "scipy", "scikit-learn", "espeakng-loader", "soundfile")
    libraries = {name: version(name) for name in names}
    value = [seed, scale, RECORD_VERSION, digest.hexdigest(), platform.python_version(), libraries, modules.list_hash]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
