"""Boxes and masks: from heads, from groundings of calls, or from numbers in the text, in one declared convention."""

from __future__ import annotations

import re
from collections.abc import Sequence

from eval.benchmarks.answer import Answer
from eval.benchmarks.parser import Parser
from eval.prediction import Prediction

CONVENTIONS = ("pixels", "unit", "unit-square", "thousandths")
_NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")
_GROUP = re.compile(r"[\[(<{]+\s*(-?\d+(?:\.\d+)?(?:[\s,;)\]>(\[<]+-?\d+(?:\.\d+)?){3})")


class BoxParser(Parser):
    """The first box of a reply, xyxy in pixels of the original image.

    The head's box comes first, then the region that a call is grounded in, then four numbers in brackets in the text.
    Text is read in the one convention that the row declares; trying several and keeping what fits the gold best would
    be no measurement.

    Args:
        convention: Of numbers in the text. "pixels"; "unit": 0 to 1 of width and height; "unit-square": 0 to 1 of the
            longer side, the image being padded to a square around its centre, as LLaVA does; "thousandths".
    """

    def __init__(self, convention: str = "pixels") -> None:
        if convention not in CONVENTIONS:
            raise ValueError(f"convention: expected one of {CONVENTIONS}, got '{convention}'")
        self.convention = convention

    def parse(self, row: Prediction) -> Answer:
        """The box, or "no box"."""
        result = row.first_result("boxes")
        if result is not None and result["boxes_xyxy"]:
            return Answer([float(edge) for edge in result["boxes_xyxy"][0]])
        for call in row.calls:
            for grounding in call["groundings"]:
                if grounding["type"] == "region":
                    return Answer([float(edge) for edge in grounding["box_xyxy"]])
        match = _GROUP.search(row.text)
        if match is None:
            return Answer(None, "no box")
        numbers = [float(number) for number in _NUMBERS.findall(match[1])]
        return Answer(to_pixels(numbers, row.meta["size"], self.convention))


class MaskParser(Parser):
    """The first mask of a reply, as COCO run lengths."""

    def parse(self, row: Prediction) -> Answer:
        """The mask, or "no mask"."""
        result = row.first_result("mask")
        return Answer(dict(result["mask"])) if result is not None else Answer(None, "no mask")


class ObjectsParser(Parser):
    """All boxes of a reply with the prompts of their calls and their scores; none at all is an answer too."""

    def parse(self, row: Prediction) -> Answer:
        """``{prompt, box_xyxy, score}`` each; a call without a result counts with its own region, at score 1."""
        found = []
        for number, call in enumerate(row.calls):
            result = row.results[number] if number < len(row.results) else None
            if result is not None and result["type"] == "boxes":
                pairs = zip(result["boxes_xyxy"], result["scores"], strict=True)
                found += [{"prompt": call["prompt"], "box_xyxy": box, "score": score} for box, score in pairs]
            else:
                regions = [item["box_xyxy"] for item in call["groundings"] if item["type"] == "region"]
                found += [{"prompt": call["prompt"], "box_xyxy": box, "score": 1.0} for box in regions]
        return Answer(found)


def to_pixels(numbers: Sequence[float], size: Sequence[int], convention: str) -> list[float]:
    """A box in a convention of :data:`CONVENTIONS` as pixels of the original image (width, height)."""
    width, height = size
    x1, y1, x2, y2 = numbers
    if convention == "pixels":
        return [x1, y1, x2, y2]
    if convention == "unit-square":
        side = max(width, height)
        left, top = (side - width) / 2, (side - height) / 2
        return [x1 * side - left, y1 * side - top, x2 * side - left, y2 * side - top]
    scale = 1000 if convention == "thousandths" else 1
    return [x1 * width / scale, y1 * height / scale, x2 * width / scale, y2 * height / scale]
