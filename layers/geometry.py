"""The affine map from original pixels to model pixels, and box and mask arithmetic in both frames.

Pixel convention (everywhere in Switchyard): boxes are ``xyxy`` with continuous edges, ``0 <= x <= width``;
pixel ``i`` covers ``[i, i + 1)``.  The *original frame* is the decoded raster after EXIF orientation; the
*input frame* is what the encoder sees after crop, resize and pad.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Box = tuple[float, float, float, float]
Resample = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class GeometricTransform:
    """Crop, then resize, then pad: ``x_in = (x - crop_left) * scale_x + pad_left``, likewise for y.

    One object renders coordinates into the input frame and inverts predictions back to original pixels, so the
    two can never disagree.

    Args:
        original_size: (width, height) of the original raster in pixels.
        crop_xyxy: The cropped window in original pixels; what lies outside the raster is padding.
        resized_size: (width, height) of the window after resizing.
        pad_left: Columns of padding left of the resized window; negative where it is cut there instead.
        pad_top: Rows of padding above the resized window, likewise.
        input_size: (width, height) of the encoder's input.
    """

    original_size: tuple[int, int]
    crop_xyxy: tuple[int, int, int, int]
    resized_size: tuple[int, int]
    pad_left: int
    pad_top: int
    input_size: tuple[int, int]

    @classmethod
    def identity(cls, size: tuple[int, int]) -> GeometricTransform:
        """The transform that leaves a raster of ``size`` (width, height) as it is."""
        return cls.resize(size, size)

    @classmethod
    def resize(cls, original_size: tuple[int, int], input_size: tuple[int, int]) -> GeometricTransform:
        """Stretch the whole raster to ``input_size``, ignoring its aspect ratio."""
        window = (0, 0, *original_size)
        return cls(original_size, window, input_size, 0, 0, input_size)

    @classmethod
    def letterbox(cls, original_size: tuple[int, int], input_size: tuple[int, int]) -> GeometricTransform:
        """Scale the whole raster to fit ``input_size`` and centre it on padding, keeping its aspect ratio."""
        (width, height), (input_width, input_height) = original_size, input_size
        scale = min(input_width / width, input_height / height)
        resized = (max(1, round(width * scale)), max(1, round(height * scale)))
        pad_left, pad_top = (input_width - resized[0]) // 2, (input_height - resized[1]) // 2
        return cls(original_size, (0, 0, width, height), resized, pad_left, pad_top, input_size)

    @classmethod
    def center_crop(cls, original_size: tuple[int, int], input_size: tuple[int, int]) -> GeometricTransform:
        """Cut the largest centred window of ``input_size``'s aspect ratio and scale it to ``input_size``."""
        (width, height), (input_width, input_height) = original_size, input_size
        scale = min(width / input_width, height / input_height)
        crop_width, crop_height = max(1, round(input_width * scale)), max(1, round(input_height * scale))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
        return cls(original_size, (left, top, left + crop_width, top + crop_height), input_size, 0, 0, input_size)

    @classmethod
    def resize_crop(cls, original_size: tuple[int, int], input_size: tuple[int, int]) -> GeometricTransform:
        """Scale the raster to cover ``input_size``, then cut its centre out, as CLIP's image processor does."""
        (width, height), (input_width, input_height) = original_size, input_size
        if input_width * height >= input_height * width:  # the width is what must be covered
            resized = (input_width, max(input_height, int(input_width * height / width)))
        else:
            resized = (max(input_width, int(input_height * width / height)), input_height)
        pad_left, pad_top = -round((resized[0] - input_width) / 2), -round((resized[1] - input_height) / 2)
        return cls(original_size, (0, 0, width, height), resized, pad_left, pad_top, input_size)

    @classmethod
    def pad_square(cls, original_size: tuple[int, int], input_size: tuple[int, int]) -> GeometricTransform:
        """Pad the raster to a square about its centre, then scale that, as LLaVA-1.5 does."""
        width, height = original_size
        side = max(width, height)
        left, top = -((side - width) // 2), -((side - height) // 2)
        return cls(original_size, (left, top, left + side, top + side), input_size, 0, 0, input_size)

    @classmethod
    def longest_side(cls, original_size: tuple[int, int], side: int) -> GeometricTransform:
        """Scale the raster's longer side to ``side`` and pad at the right and below to a square, as SAM does."""
        width, height = original_size
        scale = side / max(width, height)
        resized = (max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5)))
        return cls(original_size, (0, 0, width, height), resized, 0, 0, (side, side))

    @property
    def scale(self) -> tuple[float, float]:
        """(x, y) factors from original to input pixels."""
        left, top, right, bottom = self.crop_xyxy
        return self.resized_size[0] / (right - left), self.resized_size[1] / (bottom - top)

    def apply_boxes(self, boxes_xyxy: Sequence[Box] | Tensor) -> Tensor:
        """Map original-frame boxes (N, 4) to the input frame, not clipped."""
        boxes = torch.as_tensor(boxes_xyxy, dtype=torch.float64).reshape(-1, 4)
        scale, shift = self._affine(boxes)
        return boxes * scale + shift

    def normalise_box(self, box_xyxy: Sequence[float]) -> Box:
        """Map one original-frame box to fractions of the input frame, clipped to it; no tensors, for data workers."""
        x1, y1, x2, y2 = box_xyxy
        (scale_x, scale_y), (left, top) = self.scale, self.crop_xyxy[:2]
        width, height = self.input_size

        def along(value: float, start: int, scale: float, pad: int, extent: int) -> float:
            return min(max(((value - start) * scale + pad) / extent, 0.0), 1.0)

        return (
            along(x1, left, scale_x, self.pad_left, width),
            along(y1, top, scale_y, self.pad_top, height),
            along(x2, left, scale_x, self.pad_left, width),
            along(y2, top, scale_y, self.pad_top, height),
        )

    def invert_boxes(self, boxes_xyxy: Sequence[Box] | Tensor) -> Tensor:
        """Map input-frame boxes (N, 4) back to original pixels, clipped to the raster."""
        boxes = torch.as_tensor(boxes_xyxy, dtype=torch.float64).reshape(-1, 4)
        scale, shift = self._affine(boxes)
        width, height = self.original_size
        limit = boxes.new_tensor([width, height, width, height])
        return torch.minimum(((boxes - shift) / scale).clamp(min=0), limit)

    def apply_image(self, image: Tensor, *, fill: Sequence[float] = (0.0,), resample: Resample = "bilinear") -> Tensor:
        """Crop, resize (antialiased) and pad an image.

        Args:
            image: (C, H, W) float or uint8 tensor in the original frame.
            fill: Value of the padding, one per channel or one for all.
            resample: How it is resized.

        Returns:
            (C, input height, input width) of the same type, a view where nothing changes; uint8 is rounded once, as it
            is in image libraries.

        Raises:
            ValueError: If the raster does not have ``original_size``.
        """
        self._check_raster(image)
        window = self._crop(image, fill)
        width, height = self.resized_size
        if window.shape[-2:] != (height, width):
            window = F.interpolate(window[None], (height, width), mode=resample, antialias=True)[0]
        (from_y, from_x), (to_y, to_x) = self._seen_window(), self._seen_input()
        seen = window[:, from_y, from_x]
        if tuple(seen.shape[-2:]) == (self.input_size[1], self.input_size[0]):
            return seen
        colour = torch.tensor(fill, dtype=image.dtype, device=image.device)[:, None, None]
        canvas = colour.expand(image.shape[0], self.input_size[1], self.input_size[0]).clone()
        canvas[:, to_y, to_x] = seen
        return canvas

    def _crop(self, image: Tensor, fill: Sequence[float]) -> Tensor:
        left, top, right, bottom = self.crop_xyxy
        width, height = self.original_size
        if left >= 0 and top >= 0 and right <= width and bottom <= height:
            return image[:, top:bottom, left:right]
        colour = torch.tensor(fill, dtype=image.dtype, device=image.device)[:, None, None]
        canvas = colour.expand(image.shape[0], bottom - top, right - left).clone()
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        canvas[:, y1 - top : y2 - top, x1 - left : x2 - left] = image[:, y1:y2, x1:x2]
        return canvas

    def apply_mask(self, mask: Tensor) -> Tensor:
        """Map a boolean mask (H, W) of the original frame to the input frame (input height, input width)."""
        return self.apply_image(mask[None].float())[0] >= 0.5

    def invert_mask(self, mask_logits: Tensor, directly: bool = False) -> Tensor:
        """Map mask logits of any resolution over the input frame to original pixels.

        Args:
            mask_logits: (h, w) logits covering the whole input frame.
            directly: Where the input frame shows the image and nothing else, interpolate once, and not by way of the
                input's resolution.

        Returns:
            (H, W) boolean mask in the original frame; what the crop removed is False.
        """
        input_width, input_height = self.input_size
        logits = mask_logits.float()[None, None]
        rows, columns = self._seen_input()
        whole = (rows.start, rows.stop, columns.start, columns.stop) == (0, input_height, 0, input_width)
        if logits.shape[-2:] != (input_height, input_width) and not (directly and whole):
            logits = F.interpolate(logits, (input_height, input_width), mode="bilinear", align_corners=False)
        left, top, right, bottom = self.seen_xyxy
        logits = logits if whole else logits[..., rows, columns]
        if logits.shape[-2:] != (bottom - top, right - left):
            logits = F.interpolate(logits, (bottom - top, right - left), mode="bilinear", align_corners=False)
        mask = torch.zeros(1, self.original_size[1], self.original_size[0], dtype=torch.bool, device=logits.device)
        self.paste(logits[0] > 0, mask)
        return mask[0]

    def paste(self, window: Tensor, original: Tensor) -> None:
        """Write (C, height, width) of :attr:`seen_xyxy` into an original raster (C, H, W), without its padding."""
        left, top, right, bottom = self.seen_xyxy
        width, height = self.original_size
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        original[:, y1:y2, x1:x2] = window[:, y1 - top : y2 - top, x1 - left : x2 - left]

    @property
    def seen_xyxy(self) -> tuple[int, int, int, int]:
        """The window of original pixels that the input frame shows, in parts outside the raster where it was padded.

        Edges that fall within a pixel are rounded.
        """
        (rows, columns), (scale_x, scale_y) = self._seen_window(), self.scale
        left, top, right, bottom = self.crop_xyxy
        x1 = min(left + round(columns.start / scale_x), right - 1)
        y1 = min(top + round(rows.start / scale_y), bottom - 1)
        x2 = max(left + round(columns.stop / scale_x), x1 + 1)
        y2 = max(top + round(rows.stop / scale_y), y1 + 1)
        return x1, y1, x2, y2

    def window_of(self, canvas: Tensor) -> Tensor:
        """The part of an input frame (..., input height, input width) that shows the original, without padding."""
        return canvas[..., *self._seen_input()]

    def _seen_window(self) -> tuple[slice, slice]:
        """Rows and columns of the resized window that lie in the input frame."""
        width, height = self.resized_size
        top, left = max(0, -self.pad_top), max(0, -self.pad_left)
        return (
            slice(top, min(height, self.input_size[1] - self.pad_top)),
            slice(left, min(width, self.input_size[0] - self.pad_left)),
        )

    def _seen_input(self) -> tuple[slice, slice]:
        """The same rows and columns in the input frame."""
        rows, columns = self._seen_window()
        return (
            slice(rows.start + self.pad_top, rows.stop + self.pad_top),
            slice(columns.start + self.pad_left, columns.stop + self.pad_left),
        )

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        scale_x, scale_y = self.scale
        shift_x = self.pad_left - self.crop_xyxy[0] * scale_x
        shift_y = self.pad_top - self.crop_xyxy[1] * scale_y
        return like.new_tensor([scale_x, scale_y] * 2), like.new_tensor([shift_x, shift_y] * 2)

    def _check_raster(self, image: Tensor) -> None:
        width, height = self.original_size
        if image.shape[-2:] != (height, width):
            got = f"{image.shape[-1]}x{image.shape[-2]}"
            raise ValueError(f"expected a raster of {width}x{height} pixels, got {got}")


def coordinate_to_bin(value: float, extent: float, num_bins: int) -> int:
    """Quantise a coordinate in ``[0, extent]`` to one of ``num_bins`` equal cells; the far edge is the last cell."""
    return min(max(int(value / extent * num_bins), 0), num_bins - 1)


def bin_to_coordinate(index: int, extent: float, num_bins: int) -> float:
    """The centre of a cell, at most half a quantum from every coordinate that maps to it."""
    return (index + 0.5) / num_bins * extent
