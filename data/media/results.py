"""Results that later calls refer to: what a call would have given, by its target, and which of them it is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from data.records import Part
from layers.calls import (
    AudioResult,
    BoxesResult,
    Call,
    ImageResult,
    LabelResult,
    MaskResult,
    MasksResult,
    Result,
    ResultRef,
    ScoreResult,
    SelectionResult,
    VideoResult,
)


def reference_result(call: Call, value: Any) -> Result:
    """The result that a perfect head would give.

    Args:
        call: In original units.
        value: Its decoded target (:func:`data.media.decode_target`), or None.

    Returns:
        Boxes of four numbers or of lists of four, a mask of a boolean raster, several with their labels of the lists of
        either, an image of an RGB one, a selection of indices, a label of a string, a score of a number; of anything
        else, and of no target, a result that holds the call alone.
    """
    if isinstance(value, Tensor) and value.ndim == 1:
        return SelectionResult(call, tuple(value.tolist()))
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        certain, labels = (1.0,) * len(value), tuple(str(item.get("label", "")) for item in value)
        if all("mask" in item for item in value) and len({item["mask"].shape for item in value}) == 1:
            return MasksResult(call, torch.stack([item["mask"] for item in value]), certain, labels)
        if all("box_xyxy" in item for item in value):
            return BoxesResult(call, tuple(tuple(item["box_xyxy"]) for item in value), certain, labels)
    if isinstance(value, Tensor) and value.ndim == 2 and value.dtype == torch.bool:
        return MaskResult(call, value)
    if isinstance(value, Tensor) and value.ndim == 3 and value.dtype == torch.uint8:
        return ImageResult(call, value)
    if isinstance(value, str):
        return LabelResult(call, value, {value: 1.0})
    if isinstance(value, int | float):
        return ScoreResult(call, float(value))
    if isinstance(value, list | tuple) and value:
        boxes = [value] if all(isinstance(item, int | float) for item in value) else value
        if all(isinstance(box, list | tuple) and len(box) == 4 for box in boxes):
            return BoxesResult(call, tuple((box[0], box[1], box[2], box[3]) for box in boxes), (1.0,) * len(boxes))
    return Result(call)


def made_by(call: Call, results: Sequence[Result | None]) -> list[int]:
    """Which earlier calls made the media that a call is about, in the order of its references.

    A reference to an image, a sound or a video stands for that; one to boxes or masks for the image that they are on,
    where an earlier call made it.

    Args:
        call: Its references index ``results``.
        results: Of the earlier calls of its reply; the call of each holds that one's own references.
    """
    found: list[int] = []
    for index in (item.call_index for item in call.groundings if isinstance(item, ResultRef)):
        result, own = results[index], list[int]()
        if isinstance(result, ImageResult | VideoResult | AudioResult):
            own = [index]
        elif isinstance(result, BoxesResult | MaskResult | MasksResult):
            own = [made for made in made_by(result.call, results) if kind_made(results[made]) == "image"][-1:]
        found = [made for made in found if made not in own] + own
    return found


def referring(part: Part, num_earlier: int) -> Call:
    """The call of a record's turn with its references to earlier calls of the turn, as many as there are of these."""
    indices = [item.get("call_index") for item in part.groundings if item["type"] == "result"]
    valid = [index for index in indices if type(index) is int and 0 <= index < num_earlier]
    return Call(part.task, part.prompt, tuple(ResultRef(index) for index in valid))


def kind_made(result: Result | None) -> str:
    """The modality of a medium that a call made: the frames of a video are images."""
    return "audio" if isinstance(result, AudioResult) else "image"
