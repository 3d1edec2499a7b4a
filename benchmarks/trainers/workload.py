"""What every trainer trains: a small LLaVA, and samples of an image and text whose lengths differ as they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.llava import write_llava
from benchmarks.trainers.samples import Sample, write_samples


@dataclass(frozen=True)
class Workload:
    """A model and its samples.

    Args:
        vision: Settings of the CLIP tower.
        text: Settings of the Llama.
        shortest: Text tokens of a sample, at least.
        longest: At most.
        median: Of a log-normal distribution, before it is cut at both ends.
    """

    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    shortest: int
    longest: int
    median: int

    @property
    def image_tokens(self) -> int:
        """Positions of an image."""
        return int(self.vision["image_size"] // self.vision["patch_size"]) ** 2


SMALL = Workload(
    vision={
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 5,
        "num_attention_heads": 3,
        "image_size": 112,
        "patch_size": 16,
    },
    text={
        "vocab_size": 16_384,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
    shortest=24,
    longest=480,
    median=150,
)
"""34.1 million parameters in the language model, 2.4 in the tower, 49 positions per image."""


def write_workload(folder: Path, workload: Workload, count: int, seed: int = 0) -> None:
    """Write the model and the samples below a folder.

    Args:
        folder: Where.
        workload: What.
        count: Samples.
        seed: Of the samples.
    """
    image_id = write_llava(folder, workload.vision, workload.text, ["words"] * 4, layer=-1)
    generator = np.random.default_rng(seed)
    drawn = np.exp(generator.normal(np.log(workload.median), 0.75, count)).round().astype(int)
    lengths = drawn.clip(workload.shortest, workload.longest).tolist()
    write_samples(folder, [_draw(workload, length, image_id, generator) for length in lengths])


def _draw(workload: Workload, length: int, image_id: int, generator: np.random.Generator) -> Sample:
    """An image, then text; somewhat more than half of the text is learned, 45 % of all positions or so."""
    first = workload.text["vocab_size"] // 2  # beyond every token that means something
    words = generator.integers(first, workload.text["vocab_size"], length).tolist()
    ids = [image_id] * workload.image_tokens + words
    learned = round(0.57 * length)
    side = workload.vision["image_size"]
    image = generator.integers(0, 256, (3, side, side), dtype=np.uint8)
    return Sample(ids, len(ids) - learned, image)
