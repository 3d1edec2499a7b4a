"""Frames of generated images: targets brought to them, maps over them, and the way back to the original raster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from layers.calls import BoxesResult, HeadContext, MaskResult, MasksResult
from layers.geometry import GeometricTransform
from layers.head import HeadTarget
from layers.layout import ItemLayout


class ImageTargetProcessor:
    """Maps a target image to the frames in which the head may generate it.

    Args:
        canvas_size: (width, height) of images generated without a source.
    """

    def __init__(self, canvas_size: tuple[int, int]) -> None:
        self.canvas_size = canvas_size

    def __call__(self, value: Any, media: Sequence[ItemLayout]) -> HeadTarget:
        """Process an image.

        Args:
            value: (3, H, W) uint8.
            media: Layouts of the conversation's images; an edit's source is the last one.

        Returns:
            ``canvas`` (3, canvas height, canvas width) in [-1, 1]; and, where the latest image has the target's
            size, ``edited`` (3, input height, input width) in [-1, 1] and ``window`` (input height, input width),
            True where the input frame shows the image and not padding.

        Raises:
            ValueError: If the value is not an RGB image.
        """
        image = torch.as_tensor(value)
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
            raise ValueError(f"an image target is (3, H, W) uint8, got {tuple(image.shape)} {image.dtype}")
        scaled = image.float() / 127.5 - 1
        size = (image.shape[2], image.shape[1])
        target = {"canvas": GeometricTransform.resize(size, self.canvas_size).apply_image(scaled)}
        transform = media[-1].transform if media else None
        if transform is not None and transform.original_size == size:
            target["edited"] = transform.apply_image(scaled)
            target["window"] = transform.apply_mask(torch.ones(image.shape[1:], dtype=torch.bool))
        return target


def coordinates(like: Tensor) -> Tensor:
    """(2, H, W) x and y of every pixel from -1 to 1."""
    height, width = like.shape[-2:]
    y = torch.linspace(-1, 1, height, device=like.device)
    x = torch.linspace(-1, 1, width, device=like.device)
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])


def rasterise(context: HeadContext, like: Tensor) -> Tensor:
    """(1, H, W) 1 within the call's regions, and the boxes and masks that it refers to; all 1 when it names none.

    Raises:
        ValueError: If it refers to a mask of another image than the latest.
    """
    height, width = like.shape[-2:]
    transform = context.image.layout.transform
    assert transform is not None, "an image's layout has a transform"
    boxes, region, named = list(context.call.boxes_xyxy), like.new_zeros(1, height, width), False
    for result in context.referred_results:
        if isinstance(result, BoxesResult):
            boxes += [transform.normalise_box(box) for box in result.boxes_xyxy]
        elif isinstance(result, MaskResult | MasksResult):
            mask = result.mask if isinstance(result, MaskResult) else result.masks.any(0)
            if tuple(mask.shape) != tuple(reversed(transform.original_size)):
                got, expected = tuple(reversed(mask.shape)), transform.original_size
                raise ValueError(f"a call refers to a mask of {got} pixels, expected one of its image's {expected}")
            region = torch.maximum(region, transform.apply_mask(mask)[None].to(region))
            named = True
    if not boxes and not named:
        return like.new_ones(1, height, width)
    for x1, y1, x2, y2 in boxes:
        left, right = int(x1 * width), max(int(x1 * width) + 1, round(x2 * width))
        top, bottom = int(y1 * height), max(int(y1 * height) + 1, round(y2 * height))
        region[:, top:bottom, left:right] = 1
    return region


def to_original(canvas: Tensor, context: HeadContext) -> Tensor:
    """Map an edited input frame (3, H, W), 0 to 255, to the original raster.

    What a crop removed keeps its original pixels, or is black where the original cannot be read.
    """
    image = context.image
    transform = image.layout.transform
    assert transform is not None, "an image's layout has a transform"
    left, top, right, bottom = transform.seen_xyxy
    window = transform.window_of(canvas)
    if window.shape[1:] != (bottom - top, right - left):
        window = F.interpolate(window[None], (bottom - top, right - left), mode="bilinear", antialias=True)[0]
    if window.shape[1:] == tuple(reversed(transform.original_size)):
        return window
    if image.load_original is None:
        original = canvas.new_zeros(3, transform.original_size[1], transform.original_size[0])
    else:
        original = torch.as_tensor(image.load_original()).to(canvas)
    transform.paste(window, original)
    return original
