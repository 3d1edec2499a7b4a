"""What a call would have given, by its target: the result that a later call of the turn refers to in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layers.calls import (
    BoxesResult,
    Call,
    ImageResult,
    LabelResult,
    MaskResult,
    MasksResult,
    Result,
    ScoreResult,
    SelectionResult,
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
        if all("mask" in item for item in value):
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
