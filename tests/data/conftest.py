"""A plan with real processors and a tiny tokenizer, and shards of every modality."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.media import encode_flac, encode_graph, encode_mask, encode_png
from data.records import Media, Message, Part, Record, Target
from data.shards import ShardWriter
from encoders.graph import GraphProcessor
from encoders.speech import AudioProcessor
from encoders.vision import ImageProcessor
from heads.boxes import BoxTargetProcessor
from heads.masks import MaskTargetProcessor
from layers.media import Graph
from models.plan import BatchPlan
from models.projectors import TokenRule
from models.tokenizer import train_tokenizer
from routers.tasks import TaskSpec, TaskTable
from routers.vocabulary import Vocabulary

TABLE = TaskTable(
    (
        TaskSpec("ground", "boxes", "hidden", ("image",), ("prompt", "regions")),
        TaskSpec("seg", "masks", "hidden", ("image",), ("prompt",)),
        TaskSpec("draw", "image", "queries", (), ("prompt",), num_queries=2),
        TaskSpec("fix", "image", "queries", ("image",), ("prompt", "regions", "results"), num_queries=2),
        TaskSpec("when", "times", "hidden", ("audio",), ("prompt", "time_spans")),
        TaskSpec("point", "nodes", "hidden", ("graph",), ("nodes",)),
    ),
    num_bins=32,
    num_time_bins=20,
    max_nodes=16,
)
FEATURE_COSTS = {"image": 0.5, "audio": 1.0, "graph": 2.0}
TEXTS = ["How many digits do you see? The red 7 is here, the blue 4 is there.", "Transcribe the words. one two three"]


def text(value: str) -> Part:
    return Part("text", text=value)


def user(*parts: Part) -> Message:
    return Message("user", parts)


def assistant(*parts: Part) -> Message:
    return Message("assistant", parts)


def text_record(key: str, question: str = "How many?", answer: str = "three", task: str = "text_qa") -> Record:
    return Record(key, task, "test", "CC0-1.0", "train", (user(text(question)), assistant(text(answer))))


def image_sample(key: str, size: tuple[int, int] = (40, 24)) -> tuple[Record, dict[str, bytes]]:
    """Two turns over one image: a box call, then a mask call and a fix that refers to it."""
    generator = torch.Generator().manual_seed(len(key))
    width, height = size
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[2:9, 4:11] = True
    region = {"type": "region", "box_xyxy": [4.0, 2.0, 11.0, 9.0]}
    record = Record(
        key,
        "scene",
        "test",
        "CC0-1.0",
        "train",
        (
            user(Part("image", media="scene"), text("Where is the red 7?")),
            assistant(text("Here:"), Part("call", task="ground", prompt="red 7", groundings=(region,), target="box")),
            user(text("Cut it out and make it blue.")),
            assistant(
                Part("call", task="seg", prompt="red 7", target="mask"),
                Part("call", task="fix", prompt="7 blue", groundings=({"type": "result", "call_index": 0},)),
            ),
        ),
        {"scene": Media("image", "scene.png", size)},
        {"box": Target("box", [4.0, 2.0, 11.0, 9.0]), "mask": Target("mask", encode_mask(mask))},
    )
    return record, {"scene.png": encode_png(image)}


def audio_sample(key: str, samples: int = 8000, sample_rate: int = 16_000) -> tuple[Record, dict[str, bytes]]:
    waveform = torch.sin(torch.arange(samples) / 20) / 2
    record = Record(
        key,
        "asr",
        "test",
        "CC0-1.0",
        "train",
        (user(Part("audio", media="clip"), text("Transcribe the words.")), assistant(text("one two"))),
        {"clip": Media("audio", "clip.flac", (samples,), sample_rate)},
    )
    return record, {"clip.flac": encode_flac(waveform, sample_rate)}


def graph_sample(key: str, nodes: int = 5) -> tuple[Record, dict[str, bytes]]:
    graph = Graph(tuple(f"module {n}" for n in range(nodes)), torch.tensor([[0, 1, nodes - 1], [1, 2, 0]]))
    record = Record(
        key,
        "graph",
        "test",
        "CC0-1.0",
        "train",
        (
            user(Part("graph", media="g"), text("Which node?")),
            assistant(Part("call", task="point", groundings=({"type": "node", "index": 2},))),
        ),
        {"g": Media("graph", "g.json", (nodes,))},
    )
    return record, {"g.json": encode_graph(graph)}


@pytest.fixture(scope="session")
def plan() -> BatchPlan:
    tokenizer = train_tokenizer(TEXTS * 4, 320, TABLE)
    return BatchPlan(
        tokenizer=tokenizer,
        vocabulary=Vocabulary(tokenizer, TABLE),
        tasks=TABLE,
        processors={
            "image": ImageProcessor((32, 32), (4, 4), mode="letterbox"),
            "audio": AudioProcessor(num_mel_bins=16, chunk_features=50),
            "graph": GraphProcessor(text_width=16),
        },
        token_rules={"image": TokenRule(2), "audio": TokenRule(4), "graph": TokenRule()},
        target_processors={"boxes": BoxTargetProcessor(), "masks": MaskTargetProcessor()},
        feature_costs=FEATURE_COSTS,
    )


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """60 samples of all modalities in three shards."""
    with ShardWriter(tmp_path / "shards", "mixed", max_samples=20) as writer:
        for number in range(15):
            writer.write(text_record(f"text-{number}", question="How many? " * (1 + number % 4)), {})
            writer.write(*image_sample(f"image-{number}"))
            writer.write(*audio_sample(f"audio-{number}", samples=4000 + 900 * number))
            writer.write(*graph_sample(f"graph-{number}", nodes=3 + number % 5))
    return tmp_path / "shards"


def damaged(record: Record, **changes: object) -> Record:
    """The record with other fields."""
    return replace(record, **changes)  # type: ignore[arg-type]
