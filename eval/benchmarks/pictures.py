"""Benchmarks answered with boxes, masks and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.media import decode_mask, decode_media, encode_mask
from data.shards import Sample
from eval.benchmarks.benchmark import FAILED_IS_WRONG, answers_with, majority
from eval.benchmarks.shards import ShardBenchmark
from eval.metrics.boxes import box_iou, mask_iou, mask_overlap
from eval.metrics.statistics import Estimate, Score, mean
from eval.prediction import Prediction
from eval.recogniser import DigitRecogniser, EditVerdict, Seen, recogniser, to_pixels
from eval.tally import Tally
from inference.files import decode_image, encode_image
from layers.geometry import Box

IOU_THRESHOLD = 0.5


class BoxBenchmark(ShardBenchmark):
    """Acc@0.5 of the box that the head reads from the hidden state, and of the box written in coordinate tokens."""

    call = "ground"

    def score(self, predictions: Iterable[Prediction]) -> dict[str, Score]:
        """``box_acc50`` and ``box_acc50_tokens``."""
        sources = {
            "box_acc50": (_head_box, "the head's first box"),
            "box_acc50_tokens": (_token_box, "the first region written in coordinate tokens"),
        }
        hits, overlaps = {name: Tally() for name in sources}, {name: Tally() for name in sources}
        for row in predictions:
            for name, (box_of, _) in sources.items():
                overlap = _overlap(box_of(row), row.target("box"))
                hits[name].add(row, float(overlap >= IOU_THRESHOLD))
                overlaps[name].add(row, overlap, parts=["mean IoU"])
        scores = {}
        for name, (_, words) in sources.items():
            scores[name] = hits[name].mean(
                f"share with IoU >= {IOU_THRESHOLD} in original pixels, {words}; {FAILED_IS_WRONG}, no box too"
            )
            scores[name].parts.update(overlaps[name].mean("").parts)
        return scores

    def right(self, prediction: Prediction) -> bool:
        """Whether the head's box reaches the threshold."""
        return _overlap(_head_box(prediction), prediction.target("box")) >= IOU_THRESHOLD

    def constant(self, prediction: Prediction) -> Prediction:
        """The median validation box, from the head and in the call."""
        box = self._best
        reply = answers_with(prediction, {"type": "boxes", "boxes_xyxy": [box], "scores": [1.0]})
        for call in reply.calls:
            call["groundings"] = [{"type": "region", "box_xyxy": box}]  # type: ignore[index]
        return reply

    @cached_property
    def _best(self) -> list[float]:
        box: list[float] = np.median([row.target("box") for row in self.validation], axis=0).tolist()
        return box


class MaskBenchmark(ShardBenchmark):
    """gIoU, the mean over samples of the mask's intersection over union."""

    call = "seg"

    def score(self, predictions: Iterable[Prediction]) -> dict[str, Score]:
        """``mask_giou``, with the pixel-weighted cIoU as a part."""
        tally, shared, union = Tally(), 0, 0
        for row in predictions:
            mine, theirs = _mask(row), row.target("mask")
            tally.add(row, 0.0 if mine is None else mask_iou(mine, theirs))
            overlap = (0, int(theirs.sum())) if mine is None else mask_overlap(mine, theirs)
            shared, union = shared + overlap[0], union + overlap[1]
        protocol = (
            "gIoU: mean over samples of intersection over union with the visible ink in original pixels, 1 where both "
            f"are empty; {FAILED_IS_WRONG} (0), a missing mask or one of another size counts 0"
        )
        score = tally.mean(protocol)
        score.parts["cIoU"] = Estimate(shared / union if union else 1.0, len(tally))
        return {self.metrics[0]: score}

    def right(self, prediction: Prediction) -> bool:
        """Whether the overlap reaches the threshold of boxes."""
        mask = _mask(prediction)
        return mask is not None and mask_iou(mask, prediction.target("mask")) >= IOU_THRESHOLD

    def constant(self, prediction: Prediction) -> Prediction:
        """The pixels that most validation masks hold, at the threshold that scores best on the validation split."""
        return answers_with(prediction, {"type": "mask", "mask": self._best})

    @cached_property
    def _best(self) -> dict[str, Any]:
        masks = torch.stack([row.target("mask") for row in self.validation])
        share = masks.float().mean(0)
        options = [share >= level * share.max() for level in (0.1, 0.3, 0.5, 0.7, 0.9)]
        return encode_mask(max(options, key=lambda option: mean([mask_iou(option, mask) for mask in masks]).value))


class JudgedBenchmark(ShardBenchmark):
    """What drawing and editing share: a judge trained apart, built when it is first needed."""

    @cached_property
    def recogniser(self) -> tuple[DigitRecogniser, float]:
        """The recogniser for this data, with its own accuracy on held-out scans."""
        return recogniser(int(read_manifest(self.data)["seed"]))

    @property
    def judge_protocol(self) -> str:
        """How the judge was made and how good it is."""
        return (
            "judged by a support vector machine trained apart on real scans that no drawing was learned from, and by "
            f"the nearest palette colour; the judge itself is right on {self.recogniser[1]:.3f} of held-out real "
            "renderings"
        )


class DrawBenchmark(JudgedBenchmark):
    """Drawn digits that the judge recognises as the digit and the colour asked for."""

    def score(self, predictions: Iterable[Prediction]) -> dict[str, Score]:
        """``draw_recognised``, with digit and colour apart."""
        tally, apart = Tally(), {"digit": Tally(), "colour": Tally()}
        for row in predictions:
            seen, asked = self._look(row), _asked_for(row)
            tally.add(row, float(seen == asked))
            for name, own in apart.items():
                own.add(row, float(getattr(seen, name) == getattr(asked, name)), parts=[name])
        score = tally.mean(f"digit and colour as asked; {self.judge_protocol}; {FAILED_IS_WRONG}")
        for own in apart.values():
            score.parts.update(own.mean("").parts)
        return {self.metrics[0]: score}

    def right(self, prediction: Prediction) -> bool:
        """Whether the judge sees what was asked for."""
        return self._look(prediction) == _asked_for(prediction)

    def constant(self, prediction: Prediction) -> Prediction:
        """A real drawing of what the validation split asks for most often."""
        return answers_with(prediction, {"type": "image", "png": self._best})

    @cached_property
    def _best(self) -> str:
        wanted = majority(_asked(row) for row in self.validation)
        source = next(row for row in self.validation if _asked(row) == wanted)
        png: str = next(call["target"] for call in source.reference["calls"] if call.get("target"))["data"]
        return png

    def _look(self, row: Prediction) -> Seen:
        result = row.first_result("image")
        return Seen(None, None) if result is None else self.recogniser[0].look(to_pixels(decode_image(result["png"])))


class EditBenchmark(JudgedBenchmark):
    """Edits that change the colour of one digit and nothing else."""

    call = "edit"

    def score(self, predictions: Iterable[Prediction]) -> dict[str, Score]:
        """``edit_right``, with its three conditions apart."""
        tally, apart = Tally(), {name: Tally() for name in ("digit", "colour", "untouched")}
        for row in predictions:
            verdict = self._verdict(row)
            tally.add(row, float(verdict.right))
            for name, own in apart.items():
                own.add(row, float(getattr(verdict, name)), parts=[name])
        score = tally.mean(
            "digit recognised as before in the object's place, its new colour as asked, and mean absolute change "
            f"outside the object's mask dilated by 2 pixels below 8 of 255; {self.judge_protocol}; {FAILED_IS_WRONG}"
        )
        for own in apart.values():
            score.parts.update(own.mean("").parts)
        return {self.metrics[0]: score}

    def right(self, prediction: Prediction) -> bool:
        """Whether all three conditions hold."""
        return self._verdict(prediction).right

    def constant(self, prediction: Prediction) -> Prediction:
        """The picture as it was."""
        before = self._originals[prediction.key]
        return answers_with(prediction, {"type": "image", "png": encode_image(before)})

    @cached_property
    def _originals(self) -> dict[str, Tensor]:
        return pictures_of(self.records())

    def _verdict(self, row: Prediction) -> EditVerdict:
        result = row.first_result("image")
        if result is None:
            return EditVerdict(False, False, False)
        before, after = self._originals[row.key], decode_image(result["png"])
        if after.shape != before.shape:
            after = resized(after, before)
        mask = decode_mask(row.meta["objects"][row.meta["object"]]["mask"]).numpy()
        digit, colour = int(row.meta["digit"]), str(row.meta["new_colour"])
        return self.recogniser[0].judge_edit(to_pixels(before), to_pixels(after), mask, digit, colour)


def pictures_of(samples: Iterable[Sample]) -> dict[str, Tensor]:
    """Key -> the first image of each sample that has one."""
    images = {}
    for sample in samples:
        media = next((item for item in sample.record.media.values() if item.type == "image"), None)
        if media is not None:
            image = decode_media(media, sample.members[media.file])
            assert isinstance(image, Tensor)
            images[sample.key] = image
    return images


def read_manifest(data: Path) -> Mapping[str, Any]:
    """``manifest.json`` of a quickstart data directory.

    Raises:
        ValueError: If it is not there.
    """
    path = data / "manifest.json"
    try:
        manifest: Mapping[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"expected quickstart data with manifest.json, got '{data}'") from None
    return manifest


def _head_box(row: Prediction) -> Box | None:
    result = row.first_result("boxes")
    return tuple(result["boxes_xyxy"][0]) if result is not None and result["boxes_xyxy"] else None


def _token_box(row: Prediction) -> Box | None:
    if row.failed:
        return None
    regions = (item for call in row.calls for item in call["groundings"] if item["type"] == "region")
    region = next(regions, None)
    return None if region is None else tuple(region["box_xyxy"])


def _overlap(box: Box | None, reference: Sequence[float]) -> float:
    return 0.0 if box is None else box_iou(box, reference)


def _mask(row: Prediction) -> Tensor | None:
    result = row.first_result("mask")
    if result is None:
        return None
    mask = decode_mask(result["mask"])
    return mask if mask.shape == row.target("mask").shape else None


def _asked_for(row: Prediction) -> Seen:
    return Seen(int(row.meta["digit"]), str(row.meta["colour"]))


def _asked(row: Prediction) -> str:
    return f"{row.meta['colour']} {row.meta['digit']}"


def resized(image: Tensor, like: Tensor) -> Tensor:
    """An image (3, H, W) uint8 in the size of another."""
    size = (int(like.shape[1]), int(like.shape[2]))
    scaled = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return scaled.round().clamp(0, 255).to(torch.uint8)
