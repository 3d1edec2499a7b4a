"""Calls and results in words."""

from __future__ import annotations

from layers.calls import (
    AudioResult,
    BoxesResult,
    Call,
    EmbeddingResult,
    Grounding,
    ImageResult,
    LabelResult,
    MaskResult,
    MasksResult,
    NodeRef,
    RankingResult,
    Region,
    Result,
    ScoreResult,
    SelectionResult,
    TimeSpan,
    VideoResult,
)


def captions(result: BoxesResult | MasksResult) -> list[str]:
    """What is written beside each box or mask: its label, or what the call asked for, and its score."""
    labels = result.labels or (result.call.prompt,) * len(result.scores)
    return [f"{label} {score:.2f}".strip() for label, score in zip(labels, result.scores, strict=True)]


def describe_call(call: Call) -> str:
    """A call in words: its task, what it says and where it points."""
    said = [call.prompt, *map(describe_grounding, call.groundings)]
    return f"{call.task}: {'; '.join(filter(None, said))}".removesuffix(": ")


def describe_grounding(grounding: Grounding) -> str:
    """One grounding in words."""
    if isinstance(grounding, Region):
        where = "" if grounding.canvas is None else f" of a canvas of {grounding.canvas[0]:g}x{grounding.canvas[1]:g}"
        return "box " + ", ".join(f"{e:.1f}" if not where else f"{e:.3f}" for e in grounding.box_xyxy) + where
    if isinstance(grounding, TimeSpan):
        return f"{grounding.start:.2f} s to {grounding.end:.2f} s"
    if isinstance(grounding, NodeRef):
        return f"node {grounding.index}"
    return f"result of call {grounding.call_index}"


def describe_result(result: Result) -> str:
    """One result in words."""
    if isinstance(result, BoxesResult):
        labels = [f"{label}: " for label in result.labels] or [""] * len(result.scores)
        found = [
            f"{label}box {', '.join(f'{edge:.1f}' for edge in box)} ({score:.2f})"
            for label, box, score in zip(labels, result.boxes_xyxy, result.scores, strict=True)
        ]
        return "; ".join(found) or "no box"
    if isinstance(result, MaskResult):
        return f"mask of {int(result.mask.sum())} pixels"
    if isinstance(result, MasksResult):
        sizes = zip(captions(result), result.masks, strict=True)
        return "; ".join(f"{caption}: mask of {int(mask.sum())} pixels" for caption, mask in sizes) or "no mask"
    if isinstance(result, ImageResult):
        return f"image of {result.image.shape[2]}x{result.image.shape[1]} pixels"
    if isinstance(result, AudioResult):
        return f"{result.waveform.shape[1] / result.sample_rate:.2f} s of sound at {result.sample_rate} Hz"
    if isinstance(result, VideoResult):
        size = f"{result.frames.shape[3]}x{result.frames.shape[2]}"
        return f"{len(result.frames)} frames of {size} pixels, {result.fps:g} a second"
    if isinstance(result, LabelResult):
        probability = result.probabilities.get(result.label)
        return result.label if probability is None else f"{result.label} ({probability:.2f})"
    if isinstance(result, ScoreResult):
        return f"{result.score:.3f}"
    if isinstance(result, EmbeddingResult):
        return f"vector of {len(result.vector)} numbers"
    if isinstance(result, RankingResult):
        best = list(zip(result.items, result.scores, strict=True))[:5]
        return "; ".join(f"{item} ({score:.3f})" for item, score in best) or "no item"
    if isinstance(result, SelectionResult):
        return ", ".join(str(index) for index in result.indices) or "none"
    return type(result).__name__
