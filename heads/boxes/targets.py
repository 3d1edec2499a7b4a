"""Boxes between the frames: targets to fractions of the input frame, predictions back to original pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert

from heads.phrases import class_index, phrases_of
from layers.calls import Call, HeadContext
from layers.geometry import Box, GeometricTransform
from layers.head import HeadTarget
from layers.layout import ItemLayout


class BoxTargetProcessor:
    """Maps one box from original pixels to fractions of the input frame."""

    def __call__(self, value: Any, media: Sequence[ItemLayout]) -> HeadTarget:
        """Process a box.

        Args:
            value: Four numbers xyxy in original pixels, or a list that holds one such box.
            media: Layouts of the conversation's images; the last one is the box's image.

        Returns:
            ``boxes_xyxy`` (4,), clipped to the input frame.

        Raises:
            ValueError: If there is no image, not exactly one box, or a box outside the image or without area.
        """
        numbers = value.flatten().tolist() if isinstance(value, Tensor) else list(value)
        if len(numbers) == 1 and isinstance(numbers[0], Sequence):
            numbers = list(numbers[0])
        if len(numbers) != 4:
            raise ValueError(f"a box target is 4 numbers x1 y1 x2 y2, got {len(numbers)}")
        transform = media[-1].transform if media else None
        if transform is None:
            raise ValueError("a box target needs an image before the call, the conversation has none")
        width, height = transform.original_size
        x1, y1, x2, y2 = numbers
        if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
            raise ValueError(f"box {numbers} does not lie within its image of {width}x{height} pixels")
        return {"boxes_xyxy": torch.tensor(transform.normalise_box(numbers))}


@dataclass(frozen=True)
class BoxSetTargetProcessor:
    """Maps labelled boxes to fractions of the input frame and class indices.

    Args:
        classes: The classes; None takes the phrases of the call's prompt, see :meth:`for_call`.
    """

    classes: tuple[str, ...] | None = None

    def for_call(self, call: Call) -> BoxSetTargetProcessor:
        """The processor of one call's targets."""
        return self if self.classes is not None else BoxSetTargetProcessor(tuple(phrases_of(call.prompt)))

    def __call__(self, value: Any, media: Sequence[ItemLayout]) -> HeadTarget:
        """Process boxes.

        Args:
            value: A list of ``{"box_xyxy": four numbers in original pixels, "label": a class}``, or one box, which
                belongs to the only class.
            media: Layouts of the conversation's images; the last one is the boxes' image.

        Returns:
            ``boxes_cxcywh`` (K, 4) and ``labels`` (K,).

        Raises:
            ValueError: If there is no image, a box does not lie within it, or a label is no class.
        """
        items = value if isinstance(value, list) else [value]
        if items and not isinstance(items[0], dict):
            items = [{"box_xyxy": value}]
        one = BoxTargetProcessor()
        boxes = [one(item["box_xyxy"], media)["boxes_xyxy"] for item in items]
        stacked = torch.stack(boxes) if boxes else torch.zeros(0, 4)
        labels = [class_index(item.get("label", ""), self.classes or ("",), "box label") for item in items]
        return {
            "boxes_cxcywh": box_convert(stacked, "xyxy", "cxcywh"),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }


def original_boxes(boxes_xyxy: Tensor, context: HeadContext) -> list[Box]:
    """Boxes (K, 4) in fractions of the input frame as original pixels of the call's image, clipped to it."""
    transform = image_transform(context)
    extent = boxes_xyxy.new_tensor([*transform.input_size] * 2, dtype=torch.float64)
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in transform.invert_boxes(boxes_xyxy.double() * extent).tolist()]


def image_transform(context: HeadContext) -> GeometricTransform:
    """How the original pixels of a call's image map to the input frame."""
    transform = context.image.layout.transform
    assert transform is not None, "an image's layout has a transform"
    return transform
