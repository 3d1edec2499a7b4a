"""Mean average precision of boxes and masks, by pycocotools itself (https://arxiv.org/abs/1405.0312)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def coco_average_precision(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    kind: Literal["bbox", "segm"] = "bbox",
    images: Sequence[int] | None = None,
) -> dict[str, float]:
    """The twelve numbers of COCO's summary; -1 where a size has no object.

    Args:
        ground_truth: COCO annotations: ``images``, ``annotations``, ``categories``.
        detections: ``{"image_id", "category_id", "score", "bbox" (xywh) or "segmentation"}`` each.
        kind: "bbox" or "segm".
        images: Ids of the images that count; all of them by default.

    Raises:
        ValueError: If a detection is on an image that is not listed.
    """
    known = {image["id"] for image in ground_truth["images"]}
    strangers = sorted({item["image_id"] for item in detections} - known)
    if strangers:
        raise ValueError(f"detections: expected images of the annotations, got {strangers[:3]}")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports on standard output
        truth = COCO()
        truth.dataset = {
            "info": {},
            **ground_truth,
            "annotations": [_complete(item) for item in ground_truth["annotations"]],
        }
        truth.createIndex()
        if detections:
            found = truth.loadRes([dict(item) for item in detections])
        else:  # loadRes wants at least one
            found = COCO()
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth, found, kind)
        if images is not None:
            evaluation.params.imgIds = sorted(images)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, (float(value) for value in evaluation.stats), strict=True))


def _complete(item: Mapping[str, Any]) -> dict[str, Any]:
    width, height = item["bbox"][2:] if "bbox" in item else (0, 0)
    return {"iscrowd": 0, "area": width * height, **item}
