"""Small hand-made data, logs and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.media import encode_mask, encode_png
from data.records import Media, Message, Part, Record, Target
from data.shards import Sample, ShardWriter
from eval.log import Header, PredictionLog
from eval.prediction import Prediction, reference_of

IDENTITY = {
    "checkpoint_sha256": "c0ffee",
    "split": "test",
    "control": None,
    "session": {"max_new_tokens": 96, "constrained": False, "dtype": "float32", "decoding": "greedy"},
    "versions": {},
}


def picture(seed: int, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)


def make_sample(
    benchmark: str,
    index: int,
    reply: Sequence[Part],
    *,
    meta: Mapping[str, Any] | None = None,
    targets: Mapping[str, Target] | None = None,
    members: Mapping[str, bytes] | None = None,
    image: torch.Tensor | None = None,
    split: str = "test",
    question: str = "what is it?",
) -> Sample:
    media, files = {}, dict(members or {})
    parts: list[Part] = []
    if image is not None:
        media["image"] = Media("image", "image.png", (image.shape[2], image.shape[1]))
        files["image.png"] = encode_png(image)
        parts.append(Part("image", media="image"))
    messages = (Message("user", (*parts, Part("text", text=question))), Message("assistant", tuple(reply)))
    record = Record(
        f"{benchmark}_{index:03d}", benchmark, "tests", "CC0-1.0", split, messages, media, targets or {}, meta or {}
    )
    return Sample(record.key, record, files)


def answer_sample(benchmark: str, index: int, answer: str, kind: str = "count", **options: Any) -> Sample:
    options.setdefault("image", picture(index))
    meta = {"question_type": kind, "answer": answer, **options.pop("meta", {})}
    return make_sample(benchmark, index, [Part("text", text=answer)], meta=meta, **options)


def box_sample(index: int, box: list[float], **options: Any) -> Sample:
    call = Part("call", task="ground", prompt="red 7", groundings=({"type": "region", "box_xyxy": box},), target="t0")
    return make_sample("box", index, [call], targets={"t0": Target("box", box)}, image=picture(index), **options)


def mask_sample(index: int, mask: torch.Tensor, **options: Any) -> Sample:
    call = Part("call", task="seg", prompt="red 7", target="t0")
    targets = {"t0": Target("mask", encode_mask(mask))}
    return make_sample("mask", index, [call], targets=targets, image=picture(index), **options)


def call_sample(benchmark: str, index: int, calls: Sequence[Part], **options: Any) -> Sample:
    return make_sample(benchmark, index, calls, image=picture(index), **options)


def gold(sample: Sample, benchmark: str) -> Prediction:
    """What a perfect model would say."""
    reference = reference_of(sample)
    results: list[dict[str, Any] | None] = []
    for call in reference["calls"]:
        target = call.get("target")
        if target is None:
            results.append(None)
        elif target["type"] == "box":
            results.append({"type": "boxes", "boxes_xyxy": [target["value"]], "scores": [1.0]})
        elif target["type"] == "mask":
            results.append({"type": "mask", "mask": target["value"]})
        elif target["type"] == "image":
            results.append({"type": "image", "png": target["data"]})
        elif target["type"] == "label":
            results.append({"type": "label", "label": target["value"], "probabilities": {}})
        else:
            results.append({"type": "score", "score": target["value"]})
    calls = [{name: call[name] for name in ("task", "prompt", "groundings")} for call in reference["calls"]]
    return Prediction(benchmark, sample.key, text=reference["text"], calls=calls, results=results, reference=reference)


def write_shards(data: Path, split: str, benchmark: str, samples: Sequence[Sample]) -> None:
    with ShardWriter(data / split, benchmark) as writer:
        for sample in samples:
            writer.write(replace(sample.record, split=split), sample.members)


def write_log(
    path: Path,
    benchmarks: Mapping[str, Any],
    predictions: Sequence[Prediction],
    *,
    control: str | None = None,
    constrained: bool = False,
) -> Path:
    identity = {
        **IDENTITY,
        "control": control,
        "session": {**IDENTITY["session"], "constrained": constrained},
        "data_sha256": {name: item.data_sha256 for name, item in benchmarks.items()},
        "n_expected": {name: len(list(item.records())) for name, item in benchmarks.items()},
    }
    data = str(next(iter(benchmarks.values())).data)
    with PredictionLog(path, Header(identity, {"data": data})) as log:
        log.append(predictions)
    return path


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
