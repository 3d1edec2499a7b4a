"""Whether the results of a quickstart reply are right, call by call: what several calls of one reply are judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from data.media import decode_mask
from data.shards import Sample
from eval.benchmarks.pictures import IOU_THRESHOLD, pictures_of, read_manifest, resized
from eval.metrics.boxes import box_iou, mask_iou
from eval.metrics.routing import same_call
from eval.prediction import Prediction, reference_value
from eval.recogniser import DigitRecogniser, EditVerdict, Seen, recogniser, to_pixels
from inference.files import decode_image

_JUDGED = ("box", "mask", "image")
_DRAW, _EDIT = "draw", "edit"


class ResultJudge:
    """Judges results as the benchmarks of boxes, masks, drawings and edits do, the calls of a reply in order.

    Args:
        data: The quickstart's data.
        samples: Gives the samples that were asked about, with the pictures before an edit.
    """

    def __init__(self, data: Path, samples: Callable[[], Iterable[Sample]]) -> None:
        self.data, self._samples = data, samples

    def judges(self, row: Prediction) -> bool:
        """Whether the reference says of every call what its result is to be."""
        return all((call.get("target") or {}).get("type") in _JUDGED for call in row.reference["calls"])

    def right(self, row: Prediction) -> list[bool]:
        """Per expected call whether the reply makes it, on what it is to refer to, and gets the right result.

        An edit of a picture that an earlier call made is judged by what it does to the picture of this reply.
        """
        expected = range(len(row.reference["calls"]))
        return [not row.failed and self._is_made(row, place) and self._is_right(row, place) for place in expected]

    def _is_made(self, row: Prediction, place: int) -> bool:
        if place >= min(len(row.calls), len(row.results)) or row.results[place] is None:
            return False
        made, expected = row.calls[place], row.reference["calls"][place]
        return same_call(made, expected) and _references(made) == _references(expected)

    def _is_right(self, row: Prediction, place: int) -> bool:
        result, call = row.results[place], row.reference["calls"][place]
        assert result is not None
        value = reference_value(call["target"])
        if call["target"]["type"] == "box":
            boxes = result.get("boxes_xyxy", ())
            return bool(boxes) and box_iou(boxes[0], value) >= IOU_THRESHOLD
        if call["target"]["type"] == "mask":
            mask = decode_mask(result["mask"]) if "mask" in result else None
            return mask is not None and mask.shape == value.shape and mask_iou(mask, value) >= IOU_THRESHOLD
        if "png" not in result:
            return False
        picture = decode_image(result["png"])
        if call["task"] == _EDIT:
            return self._is_edited(row, place, picture)
        colour, digit = call["prompt"].split()
        return self._recogniser.look(to_pixels(picture)) == Seen(int(digit), colour)

    def _is_edited(self, row: Prediction, place: int, after: Tensor) -> bool:
        """Whether the object named has its new colour, and what earlier edits changed in the picture still is so."""
        calls, chain = row.reference["calls"], _chain(row, place)
        colour = calls[place]["prompt"].split()[-1]
        if calls[chain[0]]["task"] == _DRAW:
            digit = int(calls[chain[0]]["prompt"].split()[-1])
            return self._recogniser.look(to_pixels(after)) == Seen(digit, colour)
        before, item = self._before(row, place), _object(row, place)
        if before is None or item is None or not self._verdict(before, after, item, colour).right:
            return False
        for earlier in (index for index in chain[:-1] if calls[index]["task"] == _EDIT):
            other, old = _object(row, earlier), self._before(row, earlier)
            if other is None or old is None or other is item:
                continue
            kept = self._verdict(old, after, other, calls[earlier]["prompt"].split()[-1])
            if not (kept.digit and kept.colour):
                return False
        return True

    def _verdict(self, before: Tensor, after: Tensor, item: Mapping[str, Any], colour: str) -> EditVerdict:
        if after.shape != before.shape:
            after = resized(after, before)
        ink: np.ndarray = decode_mask(item["mask"]).numpy()
        return self._recogniser.judge_edit(to_pixels(before), to_pixels(after), ink, int(item["digit"]), colour)

    def _before(self, row: Prediction, place: int) -> Tensor | None:
        """The picture that a call is about: what the reply made of it before, or the sample's."""
        for earlier in reversed(_references(row.reference["calls"][place])):
            if row.reference["calls"][earlier]["target"]["type"] != "image":
                return self._before(row, earlier)
            result = row.results[earlier]
            return decode_image(result["png"]) if result is not None and "png" in result else None
        return self._originals.get(row.key)

    @cached_property
    def _originals(self) -> dict[str, Tensor]:
        return pictures_of(self._samples())

    @cached_property
    def _recogniser(self) -> DigitRecogniser:
        return recogniser(int(read_manifest(self.data)["seed"]))[0]


def _references(call: Mapping[str, Any]) -> list[int]:
    return [item["call_index"] for item in call["groundings"] if item["type"] == "result"]


def _chain(row: Prediction, place: int) -> list[int]:
    """The calls that a call builds on, the first one first, and itself."""
    earlier = _references(row.reference["calls"][place])
    return [*(_chain(row, earlier[-1]) if earlier else []), place]


def _object(row: Prediction, place: int) -> Mapping[str, Any] | None:
    """The object of the scene that a call names, "red 7", "7" or "red digit", or else the call that it builds on."""
    for index in reversed(_chain(row, place)):
        call = row.reference["calls"][index]
        words = call["prompt"].split()
        named = " ".join(words[:-1] if call["task"] == _EDIT else words)
        for item in row.meta["objects"] if named else ():
            colour, digit = item["colour"], str(item["digit"])
            if named in (f"{colour} {digit}", digit, f"{colour} digit"):
                return item
    return None
