"""A trainable image encoder from timm: feature levels fused to one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.layers import GroupNorm
from torch import Tensor, nn

from encoders.vision.images import ImageEncoder
from encoders.vision.processor import ImageProcessor, PixelNorm, ResizeMode
from encoders.vision.tower import as_size, checked_weights
from layers.layout import Layout
from layers.pretrained import known_name


class TimmEncoder(ImageEncoder):
    """Levels of a timm network, each projected by a 1x1 convolution and resampled, summed into one grid.

    A learned linear map of the cells' coordinates is added, so that every feature says where it stands, and a
    LayerNorm closes.  Items never influence each other: batch normalisation, where a network has it, keeps its
    stored statistics also in training; give ``norm_groups`` to build a network with group normalisation instead.

    Args:
        model_name: A timm model that supports ``features_only``.
        image_size: Side of a square input in pixels, or (width, height).
        stride: Input pixels per feature along each axis; must divide the input.
        hidden_size: Width of the features.
        out_indices: Which levels of the network to fuse.
        model_args: Further arguments of ``timm.create_model``.
        norm_groups: Build the network with GroupNorm of this many groups; None keeps its own normalisation.
        resize_mode: How images are fitted to the input.
        checkpoint: Local safetensors file with the timm network's weights.

    Raises:
        ValueError: If timm does not know the name (the nearest are named), the stride does not divide the input, or the
            checkpoint is not a safetensors file.
    """

    processor: ImageProcessor

    def __init__(
        self,
        model_name: str,
        image_size: int | tuple[int, int] = 64,
        stride: int = 4,
        hidden_size: int = 128,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        model_args: dict[str, Any] | None = None,
        norm_groups: int | None = None,
        resize_mode: ResizeMode = "resize",
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        width, height = as_size(image_size)
        if width % stride or height % stride:
            raise ValueError(f"stride {stride} does not divide the input of {width}x{height} pixels")
        known_name(model_name.split(".")[0], timm.list_models(), "model_name: expected a model of timm")
        arguments: dict[str, Any] = dict(model_args or {})
        if norm_groups is not None:
            arguments["norm_layer"] = partial(GroupNorm, num_groups=norm_groups)
        if checked_weights(checkpoint) is not None:
            arguments |= {"pretrained": True, "pretrained_cfg_overlay": {"file": checkpoint}}
        self.backbone = timm.create_model(
            model_name, features_only=True, out_indices=tuple(out_indices), **_tuples(arguments)
        ).to(memory_format=torch.channels_last)
        self.bases = {} if checkpoint is None else {"backbone.": checkpoint}
        self.channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        feature_info: Any = self.backbone.feature_info
        channels: list[int] = feature_info.channels()
        self.laterals = nn.ModuleList(nn.Conv2d(count, hidden_size, 1) for count in channels)
        self.positions = nn.Linear(POSITION_FEATURES, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.hidden_size = hidden_size
        data = resolve_model_data_config(self.backbone)
        grid = (height // stride, width // stride)
        self.processor = ImageProcessor((width, height), grid, resize_mode, tuple(data["mean"]))
        self.normalise = PixelNorm(data["mean"], data["std"])

    def forward(self, inputs: Mapping[str, Tensor], layout: Layout) -> Tensor:
        """Encode (B, 3, H, W) uint8 pixels to (B * rows * columns, d) features, row by row."""
        pixels = self.normalise(inputs["pixel_values"]).to(self.norm.weight.dtype, memory_format=torch.channels_last)
        grid = self.processor.grid
        fused = self.positions(grid_positions(grid[0], grid[1], pixels.device).to(pixels.dtype))  # (rows, columns, d)
        for level, lateral in zip(self.backbone(pixels), self.laterals, strict=True):
            level = level.permute(0, 3, 1, 2) if self.channels_last else level
            fused = fused + _resample(lateral(level), grid).permute(0, 2, 3, 1)  # (B, rows, columns, d)
        features = self.norm(fused).flatten(0, 2)
        assert features.shape[0] == layout.total, "the layout does not describe these images"
        return features


POSITION_FREQUENCIES = 4
POSITION_FEATURES = 2 * (1 + 2 * POSITION_FREQUENCIES)


def grid_positions(rows: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """Coordinates of the cells' centres, in [-1, 1] and as sines and cosines of octaves: (rows, columns, 18)."""
    y = (torch.arange(rows, device=device, dtype=torch.float32) + 0.5) / rows * 2 - 1
    x = (torch.arange(columns, device=device, dtype=torch.float32) + 0.5) / columns * 2 - 1
    xy = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (rows, columns, 2)
    return torch.cat([xy, octaves(xy)], dim=-1)


def octaves(values: Tensor) -> Tensor:
    """Sines, then cosines, of octaves of values (..., k) in [-1, 1]: (..., 2 · k · POSITION_FREQUENCIES)."""
    rates = torch.pi * 2 ** torch.arange(POSITION_FREQUENCIES, device=values.device)
    phases = (values[..., None] * rates).flatten(-2)
    return torch.cat([phases.sin(), phases.cos()], dim=-1)


def _resample(level: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bring a level (B, d, h, w) to the grid: averaged where it is finer, bilinear where it is coarser."""
    if level.shape[-2] > grid[0]:
        return F.adaptive_avg_pool2d(level, grid)
    if level.shape[-2:] == torch.Size(grid):
        return level
    return F.interpolate(level, grid, mode="bilinear", align_corners=False)


def _tuples(arguments: dict[str, Any]) -> dict[str, Any]:
    """YAML writes lists where timm expects tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
