"""Boxes, masks and detections."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from data.media import MediaError, decode_mask, encode_mask
from eval.benchmarks.benchmark import answers_with
from eval.benchmarks.metric import Answered, Metric, parts_of
from eval.metrics.boxes import box_iou
from eval.metrics.detection import coco_average_precision
from eval.metrics.regions import mask_overlaps
from eval.metrics.statistics import Estimate, Score
from eval.metrics.text import normalise_answer
from eval.prediction import Prediction
from eval.tally import Tally


class BoxAccuracy(Metric):
    """Acc@0.5 of the first box, and the mean overlap.

    Args:
        parts: Entries of the meta that scores are broken down by, such as the split: those are published apart.
    """

    names = ("acc50", "mean_iou")
    chooses_constant = False

    def __init__(self, parts: Sequence[str] = ()) -> None:
        self.parts = tuple(parts)

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """Both means."""
        hits, overlaps = Tally(), Tally()
        for item in answers:
            overlap = self._overlap(item)
            parts = parts_of(item.row, self.parts)
            hits.add(item.row, float(overlap >= 0.5), parts=parts)
            overlaps.add(item.row, overlap, parts=parts)
        words = "the first box of the reply, in pixels of the original image; no box counts as no overlap"
        return {"acc50": hits.mean(f"share with IoU >= 0.5; {words}"), "mean_iou": overlaps.mean(f"mean IoU; {words}")}

    def right(self, answered: Answered) -> bool:
        """From an IoU of one half on."""
        return self._overlap(answered) >= 0.5

    def constant(self, rows: Iterable[Prediction]) -> Callable[[Prediction], Prediction]:
        """The whole image."""
        return lambda row: answers_with(row, _boxes([0.0, 0.0, *map(float, row.meta["size"])]))

    def _overlap(self, item: Answered) -> float:
        return box_iou(item.answer.value, item.row.meta["box_xyxy"]) if item.answer.parsed else 0.0


class MaskScores(Metric):
    """gIoU, the mean IoU per sample, and cIoU, the sum of intersections over the sum of unions.

    Args:
        parts: Entries of the meta that scores are broken down by.
    """

    names = ("giou", "ciou")
    chooses_constant = False

    def __init__(self, parts: Sequence[str] = ()) -> None:
        self.parts = tuple(parts)

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """Both, with the share of samples above several overlaps as parts."""
        ious, pixels = Tally(), Tally(2)
        above = dict.fromkeys((0.5, 0.7, 0.9), 0)
        for item in answers:
            overlap, shared, union = _overlap(item)
            parts = parts_of(item.row, self.parts)
            ious.add(item.row, overlap, parts=parts)
            pixels.add(item.row, shared, union, parts=parts)
            for level in above:
                above[level] += overlap > level
        words = (
            "the first mask of the reply; no mask, or one of another size, is empty; ignored pixels count neither way"
        )
        giou = ious.mean(f"mean over samples of intersection over union, 1 where both masks are empty; {words}")
        for level, count in above.items():
            giou.parts[f"precision@{level}"] = Estimate(count / len(ious), len(ious))
        ciou = pixels.ratio(f"sum of intersections over sum of unions; {words}", corpus=True)
        return {"giou": giou, "ciou": replace(ciou, value=1.0, na="") if ciou.na else ciou}

    def right(self, answered: Answered) -> bool:
        """From an IoU of one half on."""
        return _overlap(answered)[0] >= 0.5

    def constant(self, rows: Iterable[Prediction]) -> Callable[[Prediction], Prediction]:
        """The whole image."""

        def reply(row: Prediction) -> Prediction:
            width, height = row.meta["size"]
            mask = encode_mask(torch.ones(height, width, dtype=torch.bool))
            return answers_with(row, {"type": "mask", "mask": mask})

        return reply


class DetectionScores(Metric):
    """COCO's mAP, by pycocotools."""

    names = ("ap", "ap50")
    chooses_constant = False

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """AP over IoU 0.5 to 0.95 and at 0.5; the other numbers of COCO's summary are parts of the first."""
        truth: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
        detections: list[dict[str, Any]] = []
        categories: dict[str, str] = {}
        strangers = 0
        for item in answers:
            meta = item.row.meta
            categories |= meta["categories"]
            width, height = meta["size"]
            truth["images"].append({"id": meta["image_id"], "width": width, "height": height})
            for thing in meta["objects"]:
                number = len(truth["annotations"]) + 1
                truth["annotations"].append({"id": number, "image_id": meta["image_id"], **thing})
            ids = {normalise_answer(name): int(key) for key, name in meta["categories"].items()}
            for found in item.answer.value if item.answer.parsed else ():
                category = ids.get(normalise_answer(found["prompt"]))
                if category is None:
                    strangers += 1
                    continue
                x1, y1, x2, y2 = map(float, found["box_xyxy"])
                detections.append(
                    {
                        "image_id": meta["image_id"],
                        "category_id": category,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "score": float(found["score"]),
                    }
                )
        truth["categories"] = [{"id": int(key), "name": name} for key, name in categories.items()]
        values = coco_average_precision(truth, detections)
        count = len(truth["images"])
        words = (
            f"pycocotools on {count} images, boxes of all calls whose prompt is a category; {strangers} boxes of other "
            "prompts were left out; a reply that does not parse has no boxes; no standard error is given"
        )
        parts = {name: Estimate(value, count) for name, value in values.items() if value >= 0}
        return {
            "ap": Score(values["AP"], count, None, f"AP at IoU 0.5:0.95; {words}", parts, corpus=True),
            "ap50": Score(values["AP50"], count, None, f"AP at IoU 0.5; {words}", corpus=True),
        }

    def right(self, answered: Answered) -> bool:
        """Whether every object has a box of its category with an IoU of one half, and there is no box too many."""
        if not answered.answer.parsed:
            return False
        found = list(answered.answer.value)
        names = answered.row.meta["categories"]
        wanted = [thing for thing in answered.row.meta["objects"] if not thing["iscrowd"]]
        for thing in wanted:
            x, y, width, height = thing["bbox"]
            name = normalise_answer(names[str(thing["category_id"])])
            match = next(
                (
                    item
                    for item in found
                    if normalise_answer(item["prompt"]) == name
                    and box_iou(item["box_xyxy"], (x, y, x + width, y + height)) >= 0.5
                ),
                None,
            )
            if match is None:
                return False
            found.remove(match)
        return not found

    def constant(self, rows: Iterable[Prediction]) -> Callable[[Prediction], Prediction]:
        """No object at all."""
        return lambda row: replace(row, raw="", text="", calls=(), errors=(), results=(), finish_reason="stop")


def _overlap(item: Answered) -> tuple[float, float, float]:
    """(IoU, intersection, union) in pixels."""
    gold = item.row.target("mask")
    ignored = item.row.meta.get("ignored")
    mask = None
    if item.answer.parsed:
        try:
            mask = decode_mask(item.answer.value)
        except (MediaError, ValueError):
            mask = None
        if mask is not None and mask.shape != gold.shape:
            mask = None
    overlaps = mask_overlaps([mask], [gold], [decode_mask(ignored) if ignored is not None else None])
    return float(overlaps.ious[0]), float(overlaps.intersections[0]), float(overlaps.unions[0])


def _boxes(box: Sequence[float]) -> dict[str, Any]:
    return {"type": "boxes", "boxes_xyxy": [list(box)], "scores": [1.0]}
