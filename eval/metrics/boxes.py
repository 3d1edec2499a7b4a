"""Overlap of boxes and of masks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def box_iou(first_xyxy: Sequence[float], second_xyxy: Sequence[float]) -> float:
    """Intersection over union of two boxes with continuous edges; 0 for a box without area."""
    left, top = max(first_xyxy[0], second_xyxy[0]), max(first_xyxy[1], second_xyxy[1])
    right, bottom = min(first_xyxy[2], second_xyxy[2]), min(first_xyxy[3], second_xyxy[3])
    intersection = max(0.0, right - left) * max(0.0, bottom - top)
    union = box_area(first_xyxy) + box_area(second_xyxy) - intersection
    return intersection / union if union > 0 else 0.0


def box_area(box_xyxy: Sequence[float]) -> float:
    """Area in square pixels; 0 if the edges are in the wrong order."""
    return max(0.0, box_xyxy[2] - box_xyxy[0]) * max(0.0, box_xyxy[3] - box_xyxy[1])


def mask_overlap(first: Tensor, second: Tensor) -> tuple[int, int]:
    """(intersection, union) in pixels of two boolean masks (H, W).

    Raises:
        ValueError: If their sizes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"expected masks of one size, got {tuple(first.shape)} and {tuple(second.shape)}")
    return int((first & second).sum()), int((first | second).sum())


def mask_iou(first: Tensor, second: Tensor) -> float:
    """Intersection over union of two masks; 1 when both are empty (LISA, https://arxiv.org/abs/2308.00692)."""
    intersection, union = mask_overlap(first, second)
    return intersection / union if union else 1.0
