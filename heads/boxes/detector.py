"""Boxes by a frozen detector of transformers: open vocabulary (Grounding DINO, OWLv2) or closed (DETR, D-FINE, ...)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES

from heads.originals import original_image, original_regions
from heads.phrases import class_index, phrases_of
from layers.calls import BoxesResult, HeadContext, Result
from layers.geometry import Box
from layers.head import Head, HeadTarget, Link, LossTerm
from layers.layout import ItemLayout
from layers.pretrained import load_pretrained


class NothingToLearn:
    """The targets of a frozen expert: none, so that training never calls it."""

    def __call__(self, value: Any, media: Sequence[ItemLayout]) -> HeadTarget:
        """Any target; returns nothing."""
        return {}


class DetectorHead(Head):
    """Boxes with labels and scores from a detector that stays as it is.

    It reads the original image and the call's words, by the link ``text``; by ``boxes`` it keeps what lies in one of
    the call's regions, by the centre of a box. The phrases of the prompt, "a red car; the dog", are what it looks for:
    any words with an open vocabulary; with a closed one its classes, or all of them where the prompt is empty. Inputs
    and outputs go through the checkpoint's own processor, so that the answer is the library's, clipped to the image.
    The detector is loaded at the first call, and never part of a checkpoint.

    Args:
        pretrained: A local directory of the detector and its processor: ``AutoModelForZeroShotObjectDetection`` or
            ``AutoModelForObjectDetection`` of transformers.
        link: ``text`` or ``boxes``.
        answer: ``all`` boxes above the threshold, or the ``best`` one of each label.
        threshold: Least score of a box; the library's default for the detector where it is None.
        text_threshold: Grounding DINO's least score of a word that belongs to a box.
        max_boxes: Most boxes of an answer.

    Raises:
        ValueError: If the link passes states.
    """

    reads_originals = True

    def __init__(
        self,
        pretrained: str,
        link: Link = "text",
        answer: Literal["all", "best"] = "all",
        threshold: float | None = None,
        text_threshold: float | None = None,
        max_boxes: int = 100,
    ) -> None:
        super().__init__()
        if link not in ("text", "boxes"):
            raise ValueError(f"DetectorHead reads no states: expected link 'text' or 'boxes', got '{link}'")
        if answer not in ("all", "best"):
            raise ValueError(f"answer: expected 'all' or 'best', got {answer!r}")
        self.pretrained, self.link, self.answer = pretrained, link, answer
        self.links = frozenset({link})
        self.threshold, self.text_threshold, self.max_boxes = threshold, text_threshold, max_boxes
        self.target_processor = NothingToLearn()
        self._expert: tuple[Any, Any, bool] | None = None

    def forward(
        self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]
    ) -> list[BoxesResult]:
        """What the detector finds, see :meth:`layers.head.Head.forward`."""
        return self.find(contexts)

    def loss(self, predictions: list[BoxesResult], targets: Sequence[HeadTarget]) -> LossTerm:
        """Nothing: the detector is frozen."""
        return LossTerm(torch.zeros(()), 0)

    def decode(self, predictions: list[BoxesResult], contexts: Sequence[HeadContext]) -> list[Result]:
        """The same, which is in original pixels."""
        return list(predictions)

    @torch.no_grad()
    def find(self, contexts: Sequence[HeadContext]) -> list[BoxesResult]:
        """The boxes that each call asks for, best first.

        Raises:
            ValueError: If a call has no image, asks an open vocabulary for nothing or a closed one for what it lacks,
                or the detector cannot be loaded.
        """
        return [self._find(context) for context in contexts]

    def _find(self, context: HeadContext) -> BoxesResult:
        image, phrases = original_image(context).cpu(), phrases_of(context.call.prompt)
        regions = original_regions(context).tolist() if self.link == "boxes" else None
        model, processor, is_open = self._loaded(context.image.features.device)
        seek = self._seek_words if is_open else self._seek_classes
        found = seek(model, processor, image, phrases, context.call.task)
        height, width = image.shape[1:]
        rows = [
            (score, (min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(x2, width), min(y2, height)), label)
            for score, (x1, y1, x2, y2), label in found
        ]
        if regions is not None:
            rows = [row for row in rows if _centre_within(row[1], regions)]
        rows.sort(key=lambda row: -row[0])
        if self.answer == "best":
            rows = [row for place, row in enumerate(rows) if row[2] not in [other[2] for other in rows[:place]]]
        rows = rows[: self.max_boxes]
        scores, boxes, labels = (
            tuple(row[0] for row in rows),
            tuple(row[1] for row in rows),
            tuple(row[2] for row in rows),
        )
        return BoxesResult(context.call, boxes, scores, labels)

    def _seek_words(self, model: Any, processor: Any, image: Tensor, phrases: list[str], task: str) -> list[_Found]:
        """Of an open vocabulary."""
        words = [" ".join(phrase.replace(".", " ").split()) for phrase in phrases]  # a full stop separates phrases
        if not all(words):
            raise ValueError(f"task '{task}': expected words to look for, got {phrases}")
        inputs = processor(images=image, text=[words], return_tensors="pt").to(model.device)
        process = processor.post_process_grounded_object_detection
        taken = inspect.signature(process).parameters
        told = {"input_ids": inputs["input_ids"], "text_threshold": self.text_threshold, "text_labels": [words]}
        told = {name: value for name, value in told.items() if name in taken and value is not None}
        (found,) = process(model(**inputs), target_sizes=[image.shape[1:]], **told, **self._least())
        return _listed(found, [str(label) for label in found["text_labels"]])

    def _seek_classes(self, model: Any, processor: Any, image: Tensor, phrases: list[str], task: str) -> list[_Found]:
        """Of a closed vocabulary."""
        names = [str(model.config.id2label[index]) for index in range(len(model.config.id2label))]
        wanted = {names[class_index(phrase, names, f"task '{task}'")] for phrase in phrases} if any(phrases) else names
        inputs = processor(images=image, return_tensors="pt").to(model.device)
        outputs = model(**inputs)
        (found,) = processor.post_process_object_detection(outputs, target_sizes=[image.shape[1:]], **self._least())
        labelled = _listed(found, [names[index] for index in found["labels"].tolist()])
        return [item for item in labelled if item[2] in wanted]

    def _least(self) -> dict[str, float]:
        return {} if self.threshold is None else {"threshold": self.threshold}

    def _loaded(self, device: torch.device) -> tuple[Any, Any, bool]:
        """The detector, its processor, and whether its vocabulary is open."""
        if self._expert is None:
            try:
                config = AutoConfig.from_pretrained(self.pretrained, trust_remote_code=False)
                is_open = config.model_type in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES
                kinds: Any = (AutoModelForZeroShotObjectDetection, AutoProcessor)
                kinds = kinds if is_open else (AutoModelForObjectDetection, AutoImageProcessor)
                model = load_pretrained(kinds[0], self.pretrained)
                processor = kinds[1].from_pretrained(self.pretrained, trust_remote_code=False)
            except (OSError, ImportError) as error:
                raise ValueError(f"the detector '{self.pretrained}' cannot be loaded: {error}") from error
            self._expert = (model.eval(), processor, is_open)
        model, processor, is_open = self._expert
        return model.to(device), processor, is_open


_Found = tuple[float, Box, str]
"""Score, box in original pixels, label."""


def _listed(found: Any, labels: Sequence[str]) -> list[_Found]:
    """A post-processed answer, row by row."""
    return list(zip(found["scores"].tolist(), map(tuple, found["boxes"].tolist()), labels, strict=True))


def _centre_within(box_xyxy: Box, regions: Sequence[Sequence[float]]) -> bool:
    x, y = (box_xyxy[0] + box_xyxy[2]) / 2, (box_xyxy[1] + box_xyxy[3]) / 2
    return any(x1 <= x <= x2 and y1 <= y <= y2 for x1, y1, x2, y2 in regions)
