"""Referring expressions: accuracy of boxes, cumulative and mean overlap of masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from eval.metrics.boxes import box_iou, mask_overlap

Box = Sequence[float]


def box_accuracy(predicted: Sequence[Box | None], golds: Sequence[Box], threshold: float = 0.5) -> list[bool]:
    """Whether each box overlaps its gold with an IoU of at least the threshold; a missing box does not.

    Args:
        predicted: The first box of each reply, xyxy in pixels of the original image, or None.
        golds: xyxy in pixels.
        threshold: The IoU that counts.
    """
    return [box is not None and box_iou(box, gold) >= threshold for box, gold in zip(predicted, golds, strict=True)]


@dataclass(frozen=True)
class MaskOverlaps:
    """Intersections and unions in pixels, one per sample.

    Args:
        intersections: (N,) pixels.
        unions: (N,) pixels.
    """

    intersections: np.ndarray
    unions: np.ndarray

    @property
    def ious(self) -> np.ndarray:
        """(N,) intersection over union; 1 where both masks are empty."""
        empty = self.unions == 0
        return np.where(empty, 1.0, self.intersections / np.where(empty, 1, self.unions))

    @property
    def giou(self) -> float:
        """Mean IoU per sample ("gIoU" of LISA, https://arxiv.org/abs/2308.00692, which adds 1e-5 to unions)."""
        return float(self.ious.mean())

    @property
    def ciou(self) -> float:
        """Sum of intersections over sum of unions; 1 if all masks are empty."""
        total = self.unions.sum()
        return float(self.intersections.sum() / total) if total else 1.0

    def precision_at(self, threshold: float) -> float:
        """Share of samples whose IoU exceeds the threshold."""
        return float((self.ious > threshold).mean())


def mask_overlaps(
    predicted: Sequence[Tensor | None], golds: Sequence[Tensor], ignored: Sequence[Tensor | None] | None = None
) -> MaskOverlaps:
    """Overlaps of masks.

    Args:
        predicted: (H, W) bool each; a missing one is empty.
        golds: (H, W) bool each.
        ignored: (H, W) bool each, or None: pixels that count neither way, such as ReasonSeg's.

    Raises:
        ValueError: If a mask has another size than its gold.
    """
    rows = []
    for place, (mask, gold) in enumerate(zip(predicted, golds, strict=True)):
        skipped = ignored[place] if ignored is not None else None
        kept = gold if skipped is None else gold & ~skipped
        if mask is None:
            rows.append((0, int(kept.sum())))
        else:
            rows.append(mask_overlap(mask if skipped is None else mask & ~skipped, kept))
    table = np.asarray(rows, dtype=np.int64).reshape(-1, 2)
    return MaskOverlaps(table[:, 0], table[:, 1])
