"""Results drawn on images: boxes, mask overlays, and an enlargement that shows single pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from layers.geometry import Box

PALETTE = ((230, 57, 70), (29, 120, 220), (42, 157, 93), (244, 140, 6), (131, 56, 190), (0, 160, 160))
_LEAST_SIDE = 384


def to_pil(image: Tensor) -> Image.Image:
    """An image (3, H, W) uint8, or a mask (H, W) bool, as a PIL image."""
    if image.ndim == 2:
        return Image.fromarray(image.cpu().numpy().astype(np.uint8) * 255)
    return Image.fromarray(np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy()))


def enlargement(width: int, height: int, least_side: int = _LEAST_SIDE) -> int:
    """The whole factor that brings the longer side of a small raster to at least ``least_side`` pixels."""
    return max(1, -(-least_side // max(width, height, 1)))


def draw_boxes(image: Tensor, boxes_xyxy: Sequence[Box], labels: Sequence[str] = ()) -> Image.Image:
    """Outline boxes on an image.

    Args:
        image: (3, H, W) uint8; small images are enlarged by a whole factor.
        boxes_xyxy: In pixels of ``image``, continuous edges.
        labels: Text per box, or nothing.

    Returns:
        The drawing.
    """
    factor = enlargement(image.shape[2], image.shape[1])
    canvas = to_pil(image)
    canvas = canvas.resize((canvas.width * factor, canvas.height * factor), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    line = max(2, max(canvas.size) // 200)
    for index, (x1, y1, x2, y2) in enumerate(boxes_xyxy):
        colour = PALETTE[index % len(PALETTE)]
        right, bottom = max(x2 * factor - 1, x1 * factor), max(y2 * factor - 1, y1 * factor)
        draw.rectangle((x1 * factor, y1 * factor, right, bottom), outline=colour, width=line)
        if index < len(labels) and labels[index]:
            place = (x1 * factor + line + 1, y1 * factor + line)
            frame = draw.textbbox(place, labels[index])
            draw.rectangle((frame[0] - 2, frame[1] - 1, frame[2] + 2, frame[3] + 1), fill=colour)
            draw.text(place, labels[index], fill="white")
    return canvas


def overlay_mask(image: Tensor, mask: Tensor, colour: tuple[int, int, int] = PALETTE[0]) -> Image.Image:
    """Tint the masked pixels of an image and dim the others.

    Args:
        image: (3, H, W) uint8; small images are enlarged by a whole factor.
        mask: (H, W) bool of the same raster.
        colour: RGB of the tint.

    Returns:
        The drawing.

    Raises:
        ValueError: If the mask is not of the image's size.
    """
    if mask.shape != image.shape[1:]:
        raise ValueError(f"expected a mask of {tuple(image.shape[1:])}, got {tuple(mask.shape)}")
    pixels, inside = image.float().cpu(), mask.cpu().bool()
    return _enlarged(_blended(torch.where(inside, _tinted(pixels, colour), _dimmed(pixels))))


def overlay_masks(image: Tensor, masks: Tensor, labels: Sequence[str] = ()) -> Image.Image:
    """Tint the pixels of several masks, each in a colour of its own and in a box with its label, and dim the others.

    Args:
        image: (3, H, W) uint8; small images are enlarged by a whole factor.
        masks: (K, H, W) bool of the same raster, best first, which is drawn on top.
        labels: Text per mask, at its box's corner, or nothing.

    Returns:
        The drawing.

    Raises:
        ValueError: If the masks are not of the image's size.
    """
    if len(masks) and masks.shape[1:] != image.shape[1:]:
        raise ValueError(f"expected masks of {tuple(image.shape[1:])}, got {tuple(masks.shape[1:])}")
    pixels, masks = image.float().cpu(), masks.cpu().bool()
    drawn = _dimmed(pixels)
    for index in reversed(range(len(masks))):
        drawn = torch.where(masks[index], _tinted(pixels, PALETTE[index % len(PALETTE)]), drawn)
    boxes = [tight_box(mask) for mask in masks]
    return draw_boxes(_blended(drawn), boxes, labels)


def tight_box(mask: Tensor) -> Box:
    """The box xyxy around the pixels of a mask (H, W), continuous edges; without area for an empty mask."""
    rows, columns = mask.any(1).nonzero().flatten().tolist(), mask.any(0).nonzero().flatten().tolist()
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if rows else (0.0, 0.0, 0.0, 0.0)


def _tinted(pixels: Tensor, colour: tuple[int, int, int]) -> Tensor:
    return 0.45 * pixels + 0.55 * torch.tensor(colour, dtype=torch.float32)[:, None, None]


def _dimmed(pixels: Tensor) -> Tensor:
    return 0.6 * pixels + 0.4 * 32


def _blended(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _enlarged(pixels: Tensor) -> Image.Image:
    drawing = to_pil(pixels)
    factor = enlargement(drawing.width, drawing.height)
    return drawing.resize((drawing.width * factor, drawing.height * factor), Image.Resampling.NEAREST)
