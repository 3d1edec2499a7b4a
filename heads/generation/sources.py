"""What a generating head takes from a conversation besides the prompt: images to edit, masks, boxes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from heads.frames import to_original
from layers.calls import BoxesResult, HeadContext, ImageResult, MaskResult, MasksResult
from layers.geometry import Box, GeometricTransform


def source_image(context: HeadContext) -> Tensor:
    """The image (3, H, W) uint8 that a call edits: an earlier result that it refers to, or else the latest image.

    Raises:
        ValueError: If there is neither.
    """
    images = [result.image for result in context.referred_results if isinstance(result, ImageResult)]
    if images:
        return images[-1]
    item = context.image
    if item.load_original is not None:
        return torch.as_tensor(item.load_original())
    return to_original(item.inputs["pixel_values"].float(), context).round().to(torch.uint8)


def fractions(context: HeadContext) -> list[Box]:
    """The call's regions, and the boxes of results that it refers to, as fractions of the picture they are on.

    That is the latest image, or an empty canvas where the conversation has none.
    """
    boxes = list(context.call.boxes_xyxy)
    found = [result for result in context.referred_results if isinstance(result, BoxesResult)]
    drawn: list[Box] = [box for result in found for box in result.boxes_xyxy]
    if not context.of_kind("image"):
        if drawn:
            raise ValueError("boxes of an earlier result need the image that they are on, the conversation has none")
        return boxes
    transform = context.image.layout.transform
    assert transform is not None, "an image's layout has a transform"
    (in_width, in_height), (width, height) = transform.input_size, transform.original_size
    pixels = [(x1 * in_width, y1 * in_height, x2 * in_width, y2 * in_height) for x1, y1, x2, y2 in boxes]
    original = [*transform.invert_boxes(pixels).tolist(), *drawn] if pixels else list(drawn)
    return [(x1 / width, y1 / height, x2 / width, y2 / height) for x1, y1, x2, y2 in original]


def region_mask(context: HeadContext, size: tuple[int, int]) -> Tensor | None:
    """Where a call points, as a boolean mask (H, W) of a picture of ``size`` (width, height); None if nowhere.

    Regions, and earlier boxes and masks that it refers to, taken together.
    """
    width, height = size
    mask = torch.zeros(height, width, dtype=torch.bool)
    pointed = False
    for result in context.referred_results:
        if isinstance(result, MaskResult):
            pointed = True
            mask |= _resized_mask(result.mask.cpu(), size)
        elif isinstance(result, MasksResult) and len(result.masks):
            pointed = True
            mask |= _resized_mask(result.masks.any(0).cpu(), size)
    for x1, y1, x2, y2 in fractions(context):
        pointed = True
        left, top = min(int(x1 * width), width - 1), min(int(y1 * height), height - 1)
        mask[top : max(top + 1, round(y2 * height)), left : max(left + 1, round(x2 * width))] = True
    return mask if pointed else None


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (C, H, W) at another (width, height), antialiased; the image itself where nothing changes."""
    own = (image.shape[2], image.shape[1])
    return image if own == size else GeometricTransform.resize(own, size).apply_image(image, resample="bicubic")


def fitted(size: tuple[int, int], longest: int, multiple: int) -> tuple[int, int]:
    """(width, height) with the longer side ``longest`` and the same proportions, both multiples of ``multiple``."""
    scale = longest / max(size)
    width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in size)
    return width, height


def _resized_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    width, height = size
    if mask.shape == (height, width):
        return mask
    return F.interpolate(mask[None, None].float(), (height, width), mode="nearest")[0, 0].bool()
