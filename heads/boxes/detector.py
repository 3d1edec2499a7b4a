"""Boxes by a frozen detector of transformers: open vocabulary (Grounding DINO, OWLv2) or closed (DETR, D-FINE, ...)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from heads.experts.detectors import Detector, DetectorExpert
from heads.experts.expert_head import ExpertHead, Request
from heads.experts.pool import ExpertPool
from heads.originals import original_image, original_regions
from heads.phrases import class_index, phrases_of
from layers.calls import BoxesResult, HeadContext, Result
from layers.geometry import Box
from layers.head import Link

_Found = tuple[float, Box, str]
"""Score, box in original pixels, label."""


class DetectorHead(ExpertHead):
    """Boxes with labels and scores from a detector that stays as it is.

    It reads the original image and the call's words, by the link ``text``; by ``boxes`` it keeps what lies in one of
    the call's regions, by the centre of a box. The phrases of the prompt, "a red car; the dog", are what it looks for:
    any words with an open vocabulary; with a closed one its classes, or all of them where the prompt is empty. Inputs
    and outputs go through the checkpoint's own processor, so that the answer is the library's, clipped to the image.
    The detector is loaded by the pool at the first call, and never part of a checkpoint.

    Args:
        pretrained: A directory of the detector and its processor, ``AutoModelForZeroShotObjectDetection`` or
            ``AutoModelForObjectDetection`` of transformers, or a repository of the Hugging Face hub.
        link: ``text`` or ``boxes``.
        answer: ``all`` boxes above the threshold, or the ``best`` one of each label.
        threshold: Least score of a box; the library's default for the detector where it is None.
        text_threshold: Grounding DINO's least score of a word that belongs to a box.
        max_boxes: Most boxes of an answer.
        experts: The pool that loads it; heads that are given one pool share its budget.
        revision: Revision on the hub.

    Raises:
        ValueError: If the link passes states.
    """

    def __init__(
        self,
        pretrained: str,
        link: Link = "text",
        answer: Literal["all", "best"] = "all",
        threshold: float | None = None,
        text_threshold: float | None = None,
        max_boxes: int = 100,
        experts: ExpertPool | None = None,
        revision: str | None = None,
    ) -> None:
        # One image at a time: the processors pad those of a batch, and a padded image has other answers.
        super().__init__(DetectorExpert(pretrained, revision), experts, batch_size=1)
        if link not in ("text", "boxes"):
            raise ValueError(f"DetectorHead reads no states: expected link 'text' or 'boxes', got '{link}'")
        if answer not in ("all", "best"):
            raise ValueError(f"answer: expected 'all' or 'best', got {answer!r}")
        self.link, self.answer_kind = link, answer
        self.links = frozenset({link})
        self.threshold, self.text_threshold, self.max_boxes = threshold, text_threshold, max_boxes

    def find(self, contexts: Sequence[HeadContext]) -> list[BoxesResult]:
        """The boxes that each call asks for, best first.

        Raises:
            ValueError: If a call has no image, asks an open vocabulary for nothing or a closed one for what it lacks,
                or the detector cannot be loaded.
        """
        found = self.decode(self(None, [0] * len(contexts), contexts), contexts)
        return [result for result in found if isinstance(result, BoxesResult)]

    def request(self, context: HeadContext) -> Request:
        """Image, phrases and regions; see :meth:`heads.experts.expert_head.ExpertHead.request`."""
        own = {
            "image": original_image(context).cpu(),
            "phrases": phrases_of(context.call.prompt),
            "regions": original_regions(context).tolist() if self.link == "boxes" else None,
        }
        return Request(context, context.call.prompt, seed=0, own=own)

    def answer(self, expert: Detector, requests: Sequence[Request]) -> list[Result]:
        """Boxes of one image; see :meth:`heads.experts.expert_head.ExpertHead.answer`."""
        (request,) = requests
        image, phrases, task = request.own["image"], request.own["phrases"], request.context.call.task
        seek = self._seek_words if expert.is_open else self._seek_classes
        height, width = image.shape[1:]
        rows = [
            (score, (min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(x2, width), min(y2, height)), label)
            for score, (x1, y1, x2, y2), label in seek(expert, image, phrases, task)
        ]
        regions = request.own["regions"]
        if regions is not None:
            rows = [row for row in rows if _centre_within(row[1], regions)]
        rows.sort(key=lambda row: -row[0])
        if self.answer_kind == "best":
            rows = [row for place, row in enumerate(rows) if row[2] not in [other[2] for other in rows[:place]]]
        rows = rows[: self.max_boxes]
        scores, boxes, labels = (
            tuple(row[0] for row in rows),
            tuple(row[1] for row in rows),
            tuple(row[2] for row in rows),
        )
        return [BoxesResult(request.context.call, boxes, scores, labels)]

    def _seek_words(self, detector: Detector, image: Tensor, phrases: list[str], task: str) -> list[_Found]:
        """Of an open vocabulary."""
        words = [" ".join(phrase.replace(".", " ").split()) for phrase in phrases]  # a full stop separates phrases
        if not all(words):
            raise ValueError(f"task '{task}': expected words to look for, got {phrases}")
        model, processor = detector.model, detector.processor
        inputs = processor(images=image, text=[words], return_tensors="pt").to(model.device)
        text = getattr(model.config, "text_config", None)
        most = getattr(model.config, "max_text_len", getattr(text, "max_position_embeddings", None))
        if most is not None and inputs["input_ids"].shape[1] > most:
            raise ValueError(
                f"task '{task}': expected words of at most {most} tokens, which the detector reads, got "
                f"{inputs['input_ids'].shape[1]}"
            )
        process = processor.post_process_grounded_object_detection
        taken = inspect.signature(process).parameters
        told = {"input_ids": inputs["input_ids"], "text_threshold": self.text_threshold, "text_labels": [words]}
        told = {name: value for name, value in told.items() if name in taken and value is not None}
        (found,) = process(model(**inputs), target_sizes=[image.shape[1:]], **told, **self._least())
        return _listed(found, [str(label) for label in found["text_labels"]])

    def _seek_classes(self, detector: Detector, image: Tensor, phrases: list[str], task: str) -> list[_Found]:
        """Of a closed vocabulary."""
        model, processor = detector.model, detector.processor
        names = [str(model.config.id2label[index]) for index in range(len(model.config.id2label))]
        wanted = {names[class_index(phrase, names, f"task '{task}'")] for phrase in phrases} if any(phrases) else names
        inputs = processor(images=image, return_tensors="pt").to(model.device)
        outputs = model(**inputs)
        (found,) = processor.post_process_object_detection(outputs, target_sizes=[image.shape[1:]], **self._least())
        labelled = _listed(found, [names[index] for index in found["labels"].tolist()])
        return [item for item in labelled if item[2] in wanted]

    def _least(self) -> dict[str, float]:
        return {} if self.threshold is None else {"threshold": self.threshold}


def _listed(found: Any, labels: Sequence[str]) -> list[_Found]:
    """A post-processed answer, row by row."""
    return list(zip(found["scores"].tolist(), map(tuple, found["boxes"].tolist()), labels, strict=True))


def _centre_within(box_xyxy: Box, regions: Sequence[Sequence[float]]) -> bool:
    x, y = (box_xyxy[0] + box_xyxy[2]) / 2, (box_xyxy[1] + box_xyxy[3]) / 2
    return any(x1 <= x <= x2 and y1 <= y <= y2 for x1, y1, x2, y2 in regions)
