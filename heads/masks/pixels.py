"""Masks from a hidden state that selects an object in a pixel decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.attend import Relevance, StateReader, group_indices, perceptron
from heads.links import LinkedHead
from heads.masks.losses import bce_and_dice
from heads.masks.targets import MaskTargetProcessor
from layers.calls import HeadContext, MaskResult, MediaFeatures, Result
from layers.head import HeadTarget, Link, LossTerm


class FilmBlock(nn.Module):
    """A residual convolution block whose normalised maps are scaled and shifted by a query (FiLM).

    Args:
        channels: Width of the maps.
        query_size: Width of the query.
    """

    def __init__(self, channels: int, query_size: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.film = nn.Linear(query_size, 2 * channels)
        self.convs = nn.Sequential(
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, maps: Tensor, query: Tensor) -> Tensor:
        """Condition (n, channels, h, w) maps on (n, query_size) queries."""
        scale, shift = self.film(query)[..., None, None].chunk(2, dim=1)
        return maps + self.convs(self.norm(maps) * (1 + scale) + shift)


class PixelDecoder(nn.Module):
    """Brings features from the encoder's grid to every pixel, conditioned on a query at each level.

    Levels are a quarter, a half and all of the input's resolution; the last two also see the pixels themselves,
    so that thin strokes keep their edges.

    Args:
        width: Width of features and query.
        channels: Widths of the maps at the quarter, half and full resolution.
    """

    def __init__(self, width: int, channels: Sequence[int]) -> None:
        super().__init__()
        quarter, half, full = channels
        self.enter = nn.Conv2d(width + 1, quarter, 1)
        self.at_quarter = FilmBlock(quarter, width)
        self.half_skip = nn.Conv2d(3, half, 4, stride=2, padding=1)
        self.to_half = nn.Conv2d(quarter, half, 1)
        self.at_half = FilmBlock(half, width)
        self.full_skip = nn.Conv2d(3, full, 3, padding=1)
        self.to_full = nn.Conv2d(half, full, 1)
        self.at_full = FilmBlock(full, width)
        self.exit = nn.Sequential(nn.GroupNorm(4, full), nn.GELU(), nn.Conv2d(full, full, 1))
        self.pick = perceptron(width, width, full + 1)

    def forward(self, features: Tensor, heat: Tensor, query: Tensor, pixels: Tensor) -> Tensor:
        """Compute mask logits.

        Args:
            features: (n, width, rows, columns).
            heat: (n, 1, rows, columns) relevance to the query, 0 to 1.
            query: (n, width).
            pixels: (n, 3, H, W), H and W even.

        Returns:
            (n, H, W) logits.
        """
        height, width = pixels.shape[-2:]
        maps = self.enter(torch.cat([features, heat], dim=1))
        maps = self.at_quarter(_resize(maps, (height + 3) // 4, (width + 3) // 4), query)
        maps = _resize(self.to_half(maps), height // 2, width // 2) + self.half_skip(pixels)
        maps = self.at_half(maps, query)
        maps = _resize(self.to_full(maps), height, width) + self.full_skip(pixels)
        maps = self.exit(self.at_full(maps, query))
        weights = self.pick(query)
        return torch.einsum("nc,nchw->nhw", weights[:, 1:], maps) + weights[:, :1, None]


class MaskHead(LinkedHead):
    """One mask per call: the state finds its object in the features, a pixel decoder cuts it out.

    A dynamic dot product of query and pixel embeddings as in MaskFormer (https://arxiv.org/abs/2107.06278), on a
    decoder that the query also modulates; the loss is ``2·BCE + 0.5·Dice`` as in LISA
    (https://arxiv.org/abs/2308.00692).

    Args:
        state_size: Width of the language model's states.
        feature_size: Width of the image encoder's features.
        width: Inner width.
        num_layers: Cross-attention layers.
        num_heads: Attention heads.
        channels: Widths of the pixel decoder at a quarter, a half and all of the resolution, multiples of 4.
        bce_weight: Weight of the mean binary cross-entropy per pixel.
        dice_weight: Weight of the Dice loss.
        link: What crosses from the language model.
        num_queries: Learned queries, for the link ``queries``.
        text_encoder: Directory of a pretrained text encoder, for the links ``text`` and ``boxes``.
    """

    def __init__(
        self,
        state_size: int,
        feature_size: int,
        width: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        channels: Sequence[int] = (64, 32, 16),
        bce_weight: float = 2.0,
        dice_weight: float = 0.5,
        link: Link = "hidden",
        num_queries: int = 0,
        text_encoder: str | None = None,
    ) -> None:
        super().__init__(link, state_size, num_queries, text_encoder=text_encoder)
        if len(channels) != 3 or any(count % 4 for count in channels):
            raise ValueError(f"channels must be three multiples of 4, got {list(channels)}")
        self.reader = StateReader(state_size, feature_size, width, num_layers, num_heads)
        self.relevance = Relevance(width)
        self.decoder = PixelDecoder(width, channels)
        self.bce_weight, self.dice_weight = bce_weight, dice_weight
        self.target_processor = MaskTargetProcessor()

    def forward(self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]) -> list[Tensor]:
        """Mask logits (H, W) of the input frame, one per call, see :meth:`layers.head.Head.forward`."""
        states, lengths = self.crossed(states, lengths, contexts)
        images = [context.image for context in contexts]
        ragged = torch.split(states, list(lengths))
        logits: dict[int, Tensor] = {}
        for group in group_indices([_shape(image) for image in images]):
            rows, columns = images[group[0]].layout.grid
            reading = self.reader(
                torch.cat([ragged[i] for i in group]),
                [lengths[i] for i in group],
                [images[i].features for i in group],
                [(rows, columns)] * len(group),
            )
            features = reading.values.transpose(1, 2).unflatten(-1, (rows, columns))
            heat = self.relevance(reading).sigmoid().unflatten(-1, (rows, columns))[:, None]
            pixels = torch.stack([images[i].inputs["pixel_values"] for i in group])
            pixels = (pixels.float() / 127.5 - 1).to(features.dtype)
            logits.update(zip(group, self.decoder(features, heat, reading.query, pixels), strict=True))
        return [logits[i] for i in range(len(contexts))]

    def loss(self, predictions: list[Tensor], targets: Sequence[HeadTarget]) -> LossTerm:
        """Sum of ``2·BCE + 0.5·Dice`` over calls."""
        if not targets:
            return LossTerm(self.zero_touch(), 0)
        bce, dice = predictions[0].new_zeros((), dtype=torch.float32), predictions[0].new_zeros((), dtype=torch.float32)
        for group in group_indices([tuple(logits.shape) for logits in predictions]):
            logits = torch.stack([predictions[i] for i in group])
            own = bce_and_dice(logits, torch.stack([targets[i]["mask"] for i in group]))
            bce, dice = bce + own[0].sum(), dice + own[1].sum()
        total = self.bce_weight * bce + self.dice_weight * dice
        return LossTerm(total, len(targets), {"bce": bce.detach(), "dice": dice.detach()})

    def decode(self, predictions: list[Tensor], contexts: Sequence[HeadContext]) -> list[Result]:
        """Boolean masks of the original size."""
        results: list[Result] = []
        for logits, context in zip(predictions, contexts, strict=True):
            transform = context.image.layout.transform
            assert transform is not None, "an image's layout has a transform"
            results.append(MaskResult(context.call, transform.invert_mask(logits)))
        return results


def _shape(image: MediaFeatures) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return image.layout.grid, tuple(image.inputs["pixel_values"].shape)


def _resize(maps: Tensor, height: int, width: int) -> Tensor:
    if maps.shape[-2:] == (height, width):
        return maps
    return F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
