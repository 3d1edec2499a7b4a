"""What every image encoder does alike: how it is switched to training, and how images of one size are batched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from layers.encoder import Encoder


class ImageEncoder(Encoder):
    """An encoder of images of one size; items never influence each other, in training neither."""

    kind: ClassVar[str] = "image"

    def train(self, mode: bool = True) -> Self:
        """Switch the mode; batch normalisation stays in evaluation mode, so that no item sees its batch."""
        super().train(mode)
        for part in self.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        return self

    def collate(self, items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Stack the images into ``pixel_values`` (B, 3, H, W)."""
        return {"pixel_values": torch.stack([item["pixel_values"] for item in items])}
