"""Losses of masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bce_and_dice(logits: Tensor, wanted: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean binary cross-entropy per pixel, and the Dice loss, of each mask.

    Args:
        logits: (n, H, W).
        wanted: (n, H, W) True, or the share of a pixel that is covered.
        weight: (n, H, W) of each pixel, 0 where there is no image.

    Returns:
        (n,) and (n,).
    """
    flat = logits.float().flatten(1)
    truth = wanted.to(flat).flatten(1)
    share = torch.ones_like(flat) if weight is None else weight.to(flat).flatten(1)
    bce = (F.binary_cross_entropy_with_logits(flat, truth, reduction="none") * share).sum(1) / share.sum(1)
    mask, truth = flat.sigmoid() * share, truth * share
    dice = 1 - (2 * (mask * truth).sum(1) + 1) / (mask.sum(1) + truth.sum(1) + 1)
    return bce, dice
