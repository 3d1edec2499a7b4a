"""Generated images: Fréchet distance and CLIPScore by torchmetrics, the feature extractor being an argument."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.multimodal.clip_score import CLIPScore

CLIP_SCORE_WEIGHT = 2.5


class StoredFeatures(nn.Module):
    """An extractor for features that were extracted before: it returns them as they are.

    Args:
        num_features: Their width.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """(N, d) features as they are."""
        return features


def frechet_distance(real: Iterable[Tensor], generated: Iterable[Tensor], extractor: nn.Module) -> float:
    """``|m_r - m_g|^2 + tr(C_r + C_g - 2 (C_r C_g)^(1/2))`` of the features of two sets of images.

    It is the FID of the literature (https://arxiv.org/abs/1706.08500) only with that paper's Inception network as the
    extractor; with another the protocol must name it.

    Args:
        real: Batches of images.
        generated: Batches of images.
        extractor: From a batch to (N, d) features; an attribute ``num_features`` spares it a trial image.

    Raises:
        ValueError: If a set has fewer than two images.
    """
    metric = FrechetInceptionDistance(feature=extractor, normalize=True)
    for is_real, batches in ((True, real), (False, generated)):
        for batch in batches:
            metric.update(batch, real=is_real)
    counts = int(metric.real_features_num_samples), int(metric.fake_features_num_samples)
    if min(counts) < 2:
        raise ValueError(
            f"Fréchet distance: expected at least two images on both sides, got {counts[0]} and {counts[1]}"
        )
    return float(metric.compute())


def frechet_distance_of_features(real: Tensor, generated: Tensor) -> float:
    """:func:`frechet_distance` of features (N, d) and (M, d).

    Raises:
        ValueError: If widths differ, or a side has fewer than two rows.
    """
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(f"expected features of one width, got {tuple(real.shape)} and {tuple(generated.shape)}")
    return frechet_distance([real.double()], [generated.double()], StoredFeatures(real.shape[1]))


def clip_score(images: Sequence[Tensor], captions: Sequence[str], model: Any, processor: Any) -> float:
    """100 times the mean cosine of images (3, H, W) uint8 with their captions, at least 0.

    Args:
        images: Images.
        captions: One caption each.
        model: A CLIP model of transformers (``get_image_features``, ``get_text_features``).
        processor: Its processor.

    Raises:
        ValueError: If the numbers differ.
    """
    if len(images) != len(captions):
        raise ValueError(f"CLIPScore: expected a caption of each of {len(images)} images, got {len(captions)}")
    metric = CLIPScore(lambda: (model, processor))
    with torch.no_grad():
        metric.update(list(images), list(captions))
    return float(metric.compute())


def clip_scores_of_features(image_features: Tensor, text_features: Tensor, weight: float = CLIP_SCORE_WEIGHT) -> Tensor:
    """(N,) ``w max(cos, 0)`` as CLIPScore's paper defines it (https://arxiv.org/abs/2104.08718), with w = 2.5.

    Args:
        image_features: (N, d).
        text_features: (N, d).
        weight: w.

    Raises:
        ValueError: If shapes differ.
    """
    if image_features.shape != text_features.shape:
        raise ValueError(
            f"expected features of one shape, got {tuple(image_features.shape)} and {tuple(text_features.shape)}"
        )
    return weight * torch.cosine_similarity(image_features.double(), text_features.double(), dim=-1).clamp(min=0)
