"""Masks by SAM or SAM 2: what crosses the link becomes prompt tokens of a mask decoder that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from heads.attend import group_indices
from heads.boxes.detector import DetectorHead
from heads.links import LinkedHead
from heads.masks.losses import bce_and_dice
from heads.masks.segment_anything import SegmentAnything
from heads.masks.targets import ExpertMaskProcessor
from heads.originals import EmbeddingCache, original_image, original_regions
from layers.calls import HeadContext, MaskResult, MasksResult, Result
from layers.head import HeadTarget, Link, LossTerm


@dataclass
class PromptedMasks:
    """What the decoder made of one call.

    Args:
        logits: (M, h, w) over the expert's frame, one per prompt.
        overlap: (M,) how much each will overlap with the truth, 0 to 1, as the decoder thinks.
        labels: What each prompt stands for; empty where there is but one thing asked for.
        scores: (M,) of the detector that found the prompts, where there is one.
    """

    logits: Tensor
    overlap: Tensor
    labels: tuple[str, ...] = ()
    scores: tuple[float, ...] | None = None


class SamMaskHead(LinkedHead):
    """Masks from SAM (https://arxiv.org/abs/2304.02643) or SAM 2 (https://arxiv.org/abs/2408.00714).

    By the links ``hidden`` and ``queries`` the states become prompt tokens through a perceptron, as in LISA
    (https://arxiv.org/abs/2308.00692); by ``boxes`` the call's regions are SAM's box prompts; by ``text`` the head's
    own text encoder makes the tokens, or a detector finds what the prompt names and its boxes are the prompts. The
    image encoder is frozen, sees the original image in its own resolution, and sees each image once. The loss is
    ``2·BCE + 0.5·Dice`` at the decoder's resolution, plus the squared error of the overlap that the decoder expects.

    Args:
        state_size: Width of the language model's states.
        pretrained: A local directory of a SAM or SAM 2 of transformers.
        config: Arguments of its configuration, for random weights instead.
        family: Which of them ``config`` is for: "sam" or "sam2".
        train_decoder: Whether the mask decoder may be trained.
        instances: Whether every prompt gives a mask of its own; else a call has one, their union.
        detector: For the link ``text``: finds the boxes that the phrases of the prompt name.
        bce_weight: Weight of the mean binary cross-entropy per pixel.
        dice_weight: Weight of the Dice loss.
        overlap_weight: Weight of the error of the expected overlap.
        max_images: Images whose maps are remembered.
        link: What crosses from the language model.
        num_queries: Learned queries, for the link ``queries``.
        text_encoder: Directory of a pretrained text encoder, for the link ``text`` without a detector.

    Raises:
        ValueError: If a detector is given for another link than ``text``, or beside a text encoder.
    """

    reads_originals = True

    def __init__(
        self,
        state_size: int,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        family: str = "sam",
        train_decoder: bool = True,
        instances: bool = False,
        detector: DetectorHead | None = None,
        bce_weight: float = 2.0,
        dice_weight: float = 0.5,
        overlap_weight: float = 0.1,
        max_images: int = 16,
        link: Link = "hidden",
        num_queries: int = 0,
        text_encoder: str | None = None,
    ) -> None:
        if detector is not None and (link != "text" or text_encoder is not None):
            raise ValueError(f"a detector goes with link 'text' and no text encoder, got '{link}' and {text_encoder!r}")
        reads_boxes = link == "boxes" or detector is not None
        super().__init__(link, state_size, num_queries, text_encoder=text_encoder, crossing=not reads_boxes)
        self.sam = SegmentAnything(pretrained, config, family, train_decoder)
        if pretrained is not None:
            self.bases = {**self.bases, "sam.model.": pretrained}
        self.instances, self.detector = instances, detector
        self.bce_weight, self.dice_weight, self.overlap_weight = bce_weight, dice_weight, overlap_weight
        if not reads_boxes:
            self.prompt = nn.Sequential(
                nn.LayerNorm(state_size),
                nn.Linear(state_size, state_size),
                nn.GELU(),
                nn.Linear(state_size, self.sam.width),
            )
        self.cache = EmbeddingCache(max_images)
        self.target_processor = ExpertMaskProcessor(self.sam.frame, self.sam.mask_size)

    def forward(
        self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]
    ) -> list[PromptedMasks]:
        """Masks of n calls, see :meth:`layers.head.Head.forward`.

        Raises:
            ValueError: If a call has no image, or no region where regions are the prompts.
        """
        found = None if self.detector is None else self.detector.find(contexts)
        boxes: list[Tensor] | None = None
        if found is not None:
            boxes = [torch.tensor(result.boxes_xyxy, dtype=torch.float64).reshape(-1, 4) for result in found]
        elif self.link == "boxes":
            boxes = [self._regions(context) for context in contexts]
        if boxes is not None:
            prompts = [self._box_prompts(own, context) for own, context in zip(boxes, contexts, strict=True)]
        else:
            crossed, counts = self.crossed(states, lengths, contexts)
            prompts = [tokens[None] for tokens in self.prompt(crossed).split(counts)] if contexts else []
        if not contexts:
            return []
        maps = self.cache.get([original_image(context) for context in contexts], self.sam.embed)
        rows = [(place, prompt) for place, own in enumerate(prompts) for prompt in own]
        made: dict[int, tuple[Tensor, Tensor]] = {}
        for group in group_indices([len(prompt) for _, prompt in rows]):
            logits, overlap = self.sam.masks(
                [maps[rows[row][0]] for row in group], torch.stack([rows[row][1] for row in group])
            )
            made.update(zip(group, zip(logits, overlap, strict=True), strict=True))
        predictions = []
        for place in range(len(contexts)):
            own = [made[row] for row, (owner, _) in enumerate(rows) if owner == place]
            logits = torch.stack([pair[0] for pair in own]) if own else maps[place][0].new_zeros(0, *self._grid)
            overlap = torch.stack([pair[1] for pair in own]) if own else maps[place][0].new_zeros(0)
            told = (found[place].labels, found[place].scores) if found is not None else ((), None)
            predictions.append(PromptedMasks(logits, overlap, *told))
        return predictions

    def loss(self, predictions: list[PromptedMasks], targets: Sequence[HeadTarget]) -> LossTerm:
        """Sum over calls of the losses of their masks, averaged over the masks of a call.

        Raises:
            ValueError: If a call with instances does not want as many masks as it has prompts.
        """
        if not targets:
            return LossTerm(self.zero_touch(), 0)
        sums = [torch.zeros((), device=predictions[0].logits.device) for _ in range(3)]
        for prediction, target in zip(predictions, targets, strict=True):
            logits, overlap, wanted = prediction.logits, prediction.overlap, target["masks"].to(prediction.logits)
            if not self.instances:
                logits, overlap, wanted = _united(logits), _mean(overlap), _united(wanted).clamp(min=0)
            if len(logits) != len(wanted):
                raise ValueError(f"SamMaskHead: expected a mask for each of {len(logits)} prompts, got {len(wanted)}")
            if not len(wanted):
                continue
            window = target["window"].to(logits).expand_as(logits)
            terms = [*bce_and_dice(logits, wanted, window), (overlap - _overlap(logits, wanted)).square()]
            sums = [total + term.float().mean() for total, term in zip(sums, terms, strict=True)]
        bce, dice, error = sums
        total = self.bce_weight * bce + self.dice_weight * dice + self.overlap_weight * error
        parts = {"bce": bce.detach(), "dice": dice.detach(), "overlap": error.detach()}
        return LossTerm(total, len(targets), parts)

    def decode(self, predictions: list[PromptedMasks], contexts: Sequence[HeadContext]) -> list[Result]:
        """Boolean masks of the original size; instances come best first."""
        results: list[Result] = []
        for prediction, context in zip(predictions, contexts, strict=True):
            width, height = context.image.layout.original_size
            transform = self.sam.frame.transform((width, height))
            cut = [transform.invert_mask(logits, directly=self.sam.is_sam2) for logits in prediction.logits]
            masks = torch.stack(cut) if cut else torch.zeros(0, height, width, dtype=torch.bool)
            if not self.instances:
                score = float(_mean(prediction.overlap.float()).clamp(0, 1))
                results.append(MaskResult(context.call, masks.any(0), score))
                continue
            rated = prediction.overlap.float().clamp(0, 1).tolist() if prediction.scores is None else prediction.scores
            order = sorted(range(len(rated)), key=lambda place: -rated[place])
            scores = tuple(rated[place] for place in order)
            labels = tuple(prediction.labels[place] for place in order) if prediction.labels else ()
            results.append(MasksResult(context.call, masks[order], scores, labels))
        return results

    @property
    def _grid(self) -> tuple[int, int]:
        return self.sam.mask_size[1], self.sam.mask_size[0]

    def _regions(self, context: HeadContext) -> Tensor:
        if not context.call.boxes_xyxy:
            raise ValueError(f"task '{context.call.task}': expected a region, which is what this head is prompted with")
        return original_regions(context)

    def _box_prompts(self, boxes_xyxy: Tensor, context: HeadContext) -> Tensor:
        """(M, T, width) prompt tokens of boxes in original pixels."""
        transform = self.sam.frame.transform(context.image.layout.original_size)
        return self.sam.box_prompts(transform.apply_boxes(boxes_xyxy))


def _united(masks: Tensor) -> Tensor:
    """(1, h, w): where any of (M, h, w) is; nowhere where there is none."""
    if len(masks):
        return masks.amax(0, keepdim=True)
    return masks.new_full((1, *masks.shape[1:]), -10.0)


def _mean(values: Tensor) -> Tensor:
    return values.mean(0, keepdim=True) if len(values) else values.new_zeros(1)


def _overlap(logits: Tensor, wanted: Tensor) -> Tensor:
    """(M,) intersection over union of the masks as they would be cut, without gradient."""
    cut, truth = (logits.detach() > 0).flatten(1), (wanted >= 0.5).flatten(1)
    return (cut & truth).sum(1) / (cut | truth).sum(1).clamp(min=1)
