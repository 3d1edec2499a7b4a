"""From rasters to encoder inputs: uint8 pixels of a fixed or a native size, normalised on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from layers.geometry import GeometricTransform, Resample
from layers.layout import ItemLayout

ResizeMode = Literal["resize", "letterbox", "pad_square", "center_crop", "resize_crop"]


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation per channel."""


@dataclass
class ImageProcessor:
    """Turns a uint8 raster into uint8 ``pixel_values`` of the encoder's input size; the encoder normalises them.

    A quarter of the bytes of normalised floats go from the workers to the device, and heads that look at an image see
    its colours.

    Args:
        input_size: (width, height) of the encoder's input in pixels.
        grid: (rows, columns) of the encoder's features.
        mode: How a raster is fitted: stretched; letterboxed; padded to a square and scaled (LLaVA-1.5); its centre cut
            out and scaled; or scaled to cover the input and cut after that (CLIP).
        mean: Colour of the padding, in [0, 1] per channel: the mean of the encoder's normalisation.
        resample: How it is scaled.
    """

    input_size: tuple[int, int]
    grid: tuple[int, int]
    mode: ResizeMode = "resize"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: Resample = "bilinear"
    kind: str = field(default="image", init=False)

    def layout(self, size: Sequence[int]) -> ItemLayout:
        """The features of an image of ``size`` (width, height): one grid, and the transform of its pixels.

        Raises:
            ValueError: If ``size`` is not two positive numbers.
        """
        original = checked_size(size)
        transform = getattr(GeometricTransform, self.mode)(original, self.input_size)
        return ItemLayout(grid=self.grid, original_size=original, transform=transform)

    def __call__(self, raw: Any) -> tuple[dict[str, Tensor], ItemLayout]:
        """Crop, resize and pad (with the mean colour) a (3, H, W) uint8 raster.

        Raises:
            ValueError: If ``raw`` is not such a raster.
        """
        layout = self.layout(raster_size(raw))
        assert layout.transform is not None
        fill = [int(255 * mean) for mean in self.mean]
        return {"pixel_values": layout.transform.apply_image(raw, fill=fill, resample=self.resample)}, layout

    def fingerprint(self) -> Mapping[str, Any]:
        """Every field, JSON-serialisable."""
        return {"processor": type(self).__name__, **asdict(self)}


@dataclass
class NativeProcessor:
    """Keeps an image's own size and shape, rounded to whole patches and within a budget of them.

    For towers that take any resolution (rotary or interpolated positions), as in NaViT
    (https://arxiv.org/abs/2307.06304) without its packing: images of one size go through the tower together.

    Args:
        patch_size: Pixels per side of a patch.
        min_patches: A smaller image is enlarged to about so many.
        max_patches: A larger one is reduced to at most so many.
        resample: How it is scaled.
    """

    patch_size: int
    min_patches: int = 16
    max_patches: int = 1024
    resample: Resample = "bicubic"
    kind: str = field(default="image", init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.min_patches <= self.max_patches:
            raise ValueError(f"expected 1 <= min_patches <= max_patches, got {self.min_patches} and {self.max_patches}")

    def layout(self, size: Sequence[int]) -> ItemLayout:
        """As :meth:`ImageProcessor.layout`."""
        original = checked_size(size)
        columns, rows = self._patches(original)
        transform = GeometricTransform.resize(original, (columns * self.patch_size, rows * self.patch_size))
        return ItemLayout(grid=(rows, columns), original_size=original, transform=transform)

    def __call__(self, raw: Any) -> tuple[dict[str, Tensor], ItemLayout]:
        """Resize a (3, H, W) uint8 raster.

        Raises:
            ValueError: If ``raw`` is not such a raster.
        """
        layout = self.layout(raster_size(raw))
        assert layout.transform is not None
        return {"pixel_values": layout.transform.apply_image(raw, resample=self.resample)}, layout

    def fingerprint(self) -> Mapping[str, Any]:
        """Every field, JSON-serialisable."""
        return {"processor": type(self).__name__, **asdict(self)}

    def _patches(self, size: tuple[int, int]) -> tuple[int, int]:
        """(columns, rows) whose aspect ratio is nearest to the image's within the budget."""
        width, height = (side / self.patch_size for side in size)
        area = width * height
        scale = math.sqrt(min(max(area, self.min_patches), self.max_patches) / area)
        columns, rows = max(1, round(width * scale)), max(1, round(height * scale))
        if columns * rows > self.max_patches:  # rounded up beyond it, or a strip with a side of less than one patch
            columns, rows = (
                (max(1, self.max_patches // rows), rows)
                if columns >= rows
                else (columns, max(1, self.max_patches // columns))
            )
        return columns, rows


@dataclass
class TiledProcessor:
    """The whole image, and tiles of the encoder's input size that show it larger (LLaVA-NeXT's "anyres").

    Of the arrangements of tiles, the one is taken that shows most of the image's own pixels, and of these the one that
    wastes least; the image is scaled into it, keeping its shape, on black padding.

    Args:
        input_size: (width, height) of the encoder's input in pixels.
        grid: (rows, columns) of the encoder's features per view.
        arrangements: (rows, columns) of tiles to choose from.
        resample: How the image is scaled.
        alone_only: Cut an image into tiles only where a conversation shows no other; several are padded to squares
            instead, with ``mean`` (LLaVA-OneVision).
        mean: Colour of that padding, in [0, 1] per channel.
    """

    input_size: tuple[int, int]
    grid: tuple[int, int]
    arrangements: tuple[tuple[int, int], ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    resample: Resample = "bicubic"
    alone_only: bool = False
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    kind: str = field(default="image", init=False)

    def among(self, count: int) -> TiledProcessor | ImageProcessor:
        """The processor of an image that is one of so many in its conversation."""
        if count == 1 or not self.alone_only:
            return self
        return ImageProcessor(self.input_size, self.grid, "pad_square", self.mean, self.resample)

    def layout(self, size: Sequence[int]) -> ItemLayout:
        """As :meth:`ImageProcessor.layout`; the transform is that of the whole image, which is stretched."""
        original = checked_size(size)
        transform = GeometricTransform.resize(original, self.input_size)
        return ItemLayout(grid=self.grid, original_size=original, transform=transform, tiles=self._arrange(original))

    def __call__(self, raw: Any) -> tuple[dict[str, Tensor], ItemLayout]:
        """``pixel_values`` (views, 3, H, W): the whole image, then the tiles row by row.

        Raises:
            ValueError: If ``raw`` is not a (3, H, W) uint8 raster.
        """
        layout = self.layout(raster_size(raw))
        assert layout.transform is not None
        whole = layout.transform.apply_image(raw, resample=self.resample)
        large = self._enlarged(layout).apply_image(raw, resample=self.resample)
        rows, columns = layout.tiles
        tiles = large.unflatten(2, (columns, -1)).unflatten(1, (rows, -1)).permute(1, 3, 0, 2, 4).flatten(0, 1)
        return {"pixel_values": torch.cat([whole[None], tiles])}, layout

    def fingerprint(self) -> Mapping[str, Any]:
        """Every field, JSON-serialisable."""
        return {"processor": type(self).__name__, **asdict(self)}

    def _arrange(self, size: tuple[int, int]) -> tuple[int, int]:
        width, height = size

        def merit(tiles: tuple[int, int]) -> tuple[int, int]:
            full_width, full_height = tiles[1] * self.input_size[0], tiles[0] * self.input_size[1]
            scale = min(full_width / width, full_height / height)
            shown = min(int(width * scale) * int(height * scale), width * height)
            return shown, shown - full_width * full_height

        return max(self.arrangements, key=merit)

    def _enlarged(self, layout: ItemLayout) -> GeometricTransform:
        """How the image lies on the tiles together."""
        (width, height), (rows, columns) = layout.original_size, layout.tiles
        full_width, full_height = columns * self.input_size[0], rows * self.input_size[1]
        across, along = full_width / width, full_height / height
        if across < along:
            resized = (full_width, min(math.ceil(height * across), full_height))
        else:
            resized = (min(math.ceil(width * along), full_width), full_height)
        pad_left, pad_top = (full_width - resized[0]) // 2, (full_height - resized[1]) // 2
        window = (0, 0, width, height)
        return GeometricTransform((width, height), window, resized, pad_left, pad_top, (full_width, full_height))


def checked_size(size: Sequence[int]) -> tuple[int, int]:
    """(width, height).

    Raises:
        ValueError: If these are not two positive numbers.
    """
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"expected an image size (width, height) in pixels, got {tuple(size)}")
    return size[0], size[1]


def raster_size(raw: Any) -> tuple[int, int]:
    """(width, height) of a raster.

    Raises:
        ValueError: If it is not a (3, H, W) uint8 tensor.
    """
    if not isinstance(raw, Tensor) or raw.dtype != torch.uint8 or raw.dim() != 3 or raw.shape[0] != 3:
        given = f"{tuple(raw.shape)} {raw.dtype}" if isinstance(raw, Tensor) else type(raw).__name__
        raise ValueError(f"expected an image as a (3, H, W) uint8 tensor, got {given}")
    return raw.shape[2], raw.shape[1]


class PixelNorm(nn.Module):
    """``(pixels / 255 - mean) / std`` of uint8 pixels (..., 3, H, W), in float32 on their device."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise."""
        return (pixels.float() / 255 - self.mean.float()) / self.std.float()
