"""What towers of other libraries share: maps of features from chosen layers, one grid per image or one vector."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.vision.images import ImageEncoder
from encoders.vision.processor import ImageProcessor, NativeProcessor, PixelNorm, ResizeMode, TiledProcessor
from layers.geometry import Resample
from layers.layout import Layout
from layers.pretrained import check_safetensors


class VisionTower(ImageEncoder):
    """A pretrained network as it is: no parameter is added, and its features are those of its library.

    A subclass says how pixels become maps (:meth:`maps`) and calls :meth:`_finish` when its network is built.
    """

    processor: ImageProcessor | NativeProcessor | TiledProcessor

    @abstractmethod
    def maps(self, pixels: Tensor) -> list[Tensor]:
        """Maps (B, d_i, rows_i, columns_i) of the chosen layers, or one (B, d, 1, 1) where the tower pools.

        Args:
            pixels: (B, 3, H, W), normalised.
        """

    def collate(self, items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Stack images or their views into ``pixel_values`` (B, 3, H, W); chain the pixels of images of several sizes.

        Then ``pixel_values`` is (Σ 3·H·W,) and ``sizes`` (B, 2) holds heights and widths.
        """
        if isinstance(self.processor, ImageProcessor):
            return super().collate(items)
        pixels = [item["pixel_values"] for item in items]
        if isinstance(self.processor, TiledProcessor):
            return {"pixel_values": torch.cat([item if item.ndim == 4 else item[None] for item in pixels])}
        sizes = torch.tensor([list(item.shape[1:]) for item in pixels])
        return {"pixel_values": torch.cat([item.flatten() for item in pixels]), "sizes": sizes}

    def forward(self, inputs: Mapping[str, Tensor], layout: Layout) -> Tensor:
        """Encode to (ΣN, d) features, row by row; images of one size go through the tower together."""
        if "sizes" not in inputs:
            features = self._features(inputs["pixel_values"]).flatten(0, 1)
        else:
            features = self._ragged(inputs["pixel_values"], inputs["sizes"])
        assert features.shape[0] == layout.total, "the layout does not describe these images"
        return features

    def _finish(
        self,
        image_size: tuple[int, int] | None,
        patch_size: int | None,
        max_patches: int,
        mean: Sequence[float],
        std: Sequence[float],
        resize_mode: ResizeMode,
        resample: Resample,
        tiles: Sequence[Sequence[int]] | None = None,
        tiles_alone_only: bool = False,
    ) -> None:
        """Learn grid and width from a run without weights, and make the processor.

        Args:
            image_size: (width, height) of the input; None keeps every image's own.
            patch_size: Pixels per patch, for images of their own size.
            max_patches: Likewise, the most of them.
            mean: Of the normalisation, per channel.
            std: Likewise.
            resize_mode: How images are fitted to the input.
            resample: How they are scaled.
            tiles: Arrangements of tiles, (rows, columns) each, for images in tiles.
            tiles_alone_only: Cut only images that are alone in their conversation.

        Raises:
            ValueError: If the tower has no patches, and images are to keep their size; or if they are to be cut into
                tiles at that.
        """
        self.normalise = PixelNorm(mean, std)
        if image_size is None and tiles is not None:
            raise ValueError("tiles: expected an input of one size, got images of their own size")
        if image_size is None:
            if patch_size is None:
                raise ValueError("image_size: expected a size, since this tower has no patches of one size, got None")
            side = 4 * patch_size
            self.hidden_size = self._probe((side, side))[1]
            self.processor = NativeProcessor(patch_size, max_patches=max_patches, resample=resample)
            return
        grid, self.hidden_size = self._probe(image_size)
        if tiles is not None:
            arrangements = tuple((int(rows), int(columns)) for rows, columns in tiles)
            self.processor = TiledProcessor(image_size, grid, arrangements, resample, tiles_alone_only, tuple(mean))
            return
        self.processor = ImageProcessor(image_size, grid, resize_mode, tuple(mean), resample)

    def _probe(self, size: tuple[int, int]) -> tuple[tuple[int, int], int]:
        """(rows, columns) and width of the features of an image, with parameters that hold no numbers."""
        blank = {name: value.to("meta") for name, value in (*self.named_parameters(), *self.named_buffers())}
        pixels = torch.empty(1, 3, size[1], size[0], device="meta")
        was_training = self.training
        self.eval()
        with torch.no_grad():
            features = torch.func.functional_call(_Maps(self), {f"tower.{k}": v for k, v in blank.items()}, (pixels,))
        self.train(was_training)
        return (features.shape[1], features.shape[2]), features.shape[3]

    def _features(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to (B, N, d)."""
        dtype = next(self.parameters()).dtype
        return joined(self.maps(self.normalise(pixels).to(dtype))).flatten(1, 2)

    def _ragged(self, pixels: Tensor, sizes: Tensor) -> Tensor:
        shapes = [(int(height), int(width)) for height, width in sizes.tolist()]
        images = torch.split(pixels, [3 * height * width for height, width in shapes])
        done: dict[int, Tensor] = {}
        for shape in dict.fromkeys(shapes):
            places = [place for place, other in enumerate(shapes) if other == shape]
            batch = torch.stack([images[place].view(3, *shape) for place in places])
            done.update(zip(places, self._features(batch), strict=True))
        return torch.cat([done[place] for place in range(len(shapes))])


class _Maps(nn.Module):
    """A tower whose forward pass is :meth:`VisionTower.maps`, for a run with other parameters."""

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, rows, columns, d)."""
        return joined(self.tower.maps(pixels))


def joined(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, d_i, rows_i, columns_i) on the finest grid among them, side by side: (B, rows, columns, Σ d_i)."""
    finest = max((tuple(item.shape[-2:]) for item in maps), key=lambda grid: grid[0] * grid[1])
    aligned = [
        item if tuple(item.shape[-2:]) == finest else F.interpolate(item, finest, mode="bilinear", align_corners=False)
        for item in maps
    ]
    return torch.cat(aligned, dim=1).permute(0, 2, 3, 1)


def tokens_to_map(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """(B, prefix + rows · columns, d) tokens, class and register tokens first, to (B, d, rows, columns)."""
    return tokens[:, -rows * columns :].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)


def checked_weights(checkpoint: str | None) -> str | None:
    """A file with weights, or None.

    Raises:
        ValueError: If it is no safetensors file, or one that is cut short.
    """
    if checkpoint is not None and (Path(checkpoint).suffix != ".safetensors" or not Path(checkpoint).is_file()):
        raise ValueError(f"checkpoint: expected a safetensors file, got '{checkpoint}'")
    if checkpoint is not None:
        check_safetensors(checkpoint)
    return checkpoint


def as_resample(interpolation: str) -> Resample:
    """A library's name of an interpolation; what is neither is taken as bicubic."""
    return "bilinear" if interpolation == "bilinear" else "bicubic"


@overload
def as_size(size: int | Sequence[int]) -> tuple[int, int]: ...
@overload
def as_size(size: int | Sequence[int] | None) -> tuple[int, int] | None: ...
def as_size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """(width, height) of a side, of two sides, or None."""
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
