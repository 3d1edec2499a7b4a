"""The quickstart's fifteen benchmarks: which shards, which metric, which controls mean something."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from eval.benchmarks.answers import (
    AnswerBenchmark,
    LabelBenchmark,
    LinkBenchmark,
    RoutingBenchmark,
    TranscriptBenchmark,
)
from eval.benchmarks.benchmark import HEAD_NEEDS_MEDIA, TEXT_ONLY, Benchmark
from eval.benchmarks.pictures import BoxBenchmark, DrawBenchmark, EditBenchmark, MaskBenchmark

NAMES = (
    "image_qa",
    "box",
    "mask",
    "draw",
    "edit",
    "caption",
    "asr",
    "translation",
    "speakers",
    "spoken_facts",
    "spoken_image_qa",
    "node_family",
    "link",
    "match",
    "routing",
)

TARGETS: dict[str, tuple[str, float]] = {
    "image_qa": (">=", 0.85),
    "box_acc50": (">=", 0.80),
    "mask_giou": (">=", 0.75),
    "draw_recognised": (">=", 0.85),
    "edit_right": (">=", 0.75),
    "wer": ("<=", 0.08),
    "translation_exact": (">=", 0.85),
    "speakers": (">=", 0.90),
    "spoken_image_qa": (">=", 0.75),
    "link_auc": (">=", 0.80),
    "routing_f1": (">=", 0.99),
    "parse_failure": ("<=", 0.002),
    "two_calls": (">=", 0.80),
}
"""What a trained quickstart is meant to reach."""

MARGINS: dict[str, tuple[str, float]] = {"node_family": ("zeroed", 0.10)}
"""Metric -> the control that it is meant to exceed, and by how much."""

CONTROL_LIMITS: dict[str, tuple[str, float]] = {"image_qa": ("blind", 0.30)}
"""Metric -> the control that is meant to stay at or below a limit."""

_HEAD = {"blind": HEAD_NEEDS_MEDIA}
_ROUTING = {"blind": "without the media most tasks are not available, so the calls cannot be made; see zeroed"}
_TEXT = dict.fromkeys(("blind", "shuffled", "zeroed"), TEXT_ONLY)


def quickstart_benchmarks(data: str | Path, split: str = "test", names: Iterable[str] = ()) -> dict[str, Benchmark]:
    """The benchmarks by name.

    Args:
        data: The quickstart's data directory.
        split: Which split is asked.
        names: Some of them, or none for all.

    Raises:
        ValueError: For an unknown name.
    """
    names = set(names)
    unknown = sorted(names - set(NAMES))
    if unknown:
        raise ValueError(f"benchmark: expected one of {sorted(NAMES)}, got {unknown}")
    benchmarks: list[Benchmark] = [
        AnswerBenchmark("image_qa", "image_qa", data, split, macro=True),
        BoxBenchmark("box", ["box_acc50", "box_acc50_tokens"], data, split, _HEAD),
        MaskBenchmark("mask", ["mask_giou"], data, split, _HEAD),
        DrawBenchmark("draw", ["draw_recognised"], data, split, _TEXT),
        EditBenchmark("edit", ["edit_right"], data, split, _HEAD),
        AnswerBenchmark("caption", "caption_exact", data, split),
        TranscriptBenchmark("asr", ["wer"], data, split),
        AnswerBenchmark("translation", "translation_exact", data, split),
        AnswerBenchmark("speakers", "speakers", data, split, part="answer"),
        AnswerBenchmark("spoken_facts", "spoken_facts", data, split),
        AnswerBenchmark("spoken_image_qa", "spoken_image_qa", data, split),
        LabelBenchmark("node_family", "node_family", data, split, _HEAD, cluster="module"),
        LinkBenchmark("link", "link_auc", data, split, _HEAD, cluster="modules"),
        AnswerBenchmark("match", "match_exact", data, split, cluster="module"),
        RoutingBenchmark(
            "routing",
            ["routing_f1", "routing_precision", "routing_recall", "parse_failure", "two_calls"],
            data,
            split,
            _ROUTING,
        ),
    ]
    known = {benchmark.name: benchmark for benchmark in benchmarks}
    return {name: known[name] for name in NAMES if name in names or not names}
