"""Any number of boxes with labels: set prediction over the cells of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from heads.attend import grid_centres, pad_ragged, perceptron, sincos_positions
from heads.boxes.matching import SetTarget, SetWeights, set_loss
from heads.boxes.targets import BoxSetTargetProcessor, original_boxes
from heads.links import LinkedHead, PromptEncoder
from heads.phrases import asked_phrases
from layers.calls import BoxesResult, HeadContext, Result
from layers.head import HeadTarget, Link, LossTerm

SMALL = -2.0
"""Where sizes of boxes begin, before the sigmoid: .12 of the frame."""
CLASS_COST = 3.0
"""Of the matching, where DETR has 1: the cells of an object propose equally good boxes, and which of them was matched
changed from step to step, so that none learned to speak for it. Eight scenes were learned by heart in 120 steps to an
AP of .99, and in 200 steps with 1 to .25."""


@dataclass
class BoxSets:
    """Predicted sets of n calls.

    Args:
        logits: Per layer and call (N, C + 1), the last class being none.
        boxes_cxcywh: Per layer and call (N, 4) fractions of the input frame.
        classes: Per call the C classes.
    """

    logits: list[list[Tensor]]
    boxes_cxcywh: list[list[Tensor]]
    classes: list[list[str]] = field(default_factory=list)


class BoxSetHead(LinkedHead):
    """Boxes for every phrase of the prompt, or for every class, found as a set.

    Every cell of the image proposes one box from its own place and says what it is, or that it is nothing, as in
    OWL-ViT (https://arxiv.org/abs/2205.06230); the cells attend to one another, so that one of them speaks for an
    object, and to what crosses the link. Proposals and objects are matched one to one, and the loss is DETR's
    (https://arxiv.org/abs/2005.12872) after every layer, ``CE + 5·L1 + 2·GIoU`` per call. With an open vocabulary a
    cell is compared with the phrases of the prompt, "a red car; the dog", by a dot product with their text vectors.

    Args:
        state_size: Width of the language model's states.
        feature_size: Width of the image encoder's features.
        classes: A closed vocabulary; None compares with the prompt's phrases.
        answer: ``all`` boxes above the threshold, a detection list; or the ``best`` box of each phrase or class,
            whatever its score, as phrase grounding wants it.
        threshold: Least score of a box in a list.
        max_boxes: Most boxes in a list.
        width: Inner width, a multiple of 4 and of ``num_heads``.
        num_layers: Layers of attention.
        num_heads: Attention heads.
        weights: Of the matching's costs and of the loss; DETR's by default, but for the class in the matching, 3.
        link: What crosses from the language model.
        num_queries: Learned queries, for the link ``queries``.
        text_encoder: Directory of a pretrained text encoder, for the phrases and for the links ``text`` and ``boxes``.
    """

    def __init__(
        self,
        state_size: int,
        feature_size: int,
        classes: Sequence[str] | None = None,
        answer: Literal["all", "best"] = "all",
        threshold: float = 0.5,
        max_boxes: int = 100,
        width: int = 128,
        num_layers: int = 3,
        num_heads: int = 4,
        weights: SetWeights | None = None,
        link: Link = "hidden",
        num_queries: int = 0,
        text_encoder: str | None = None,
    ) -> None:
        crossing_text = link in ("text", "boxes")
        super().__init__(link, state_size, num_queries, text_encoder=text_encoder if crossing_text else None)
        if classes is not None and (len(set(classes)) != len(classes) or not classes):
            raise ValueError(f"classes must be different names, got {list(classes)}")
        if answer not in ("all", "best"):
            raise ValueError(f"answer: expected 'all' or 'best', got {answer!r}")
        self.classes = None if classes is None else list(classes)
        self.answer, self.threshold, self.max_boxes = answer, threshold, max_boxes
        self.weights = weights or SetWeights(class_cost=CLASS_COST)
        self.width = width
        self.state_projection = nn.Sequential(nn.LayerNorm(state_size), perceptron(state_size, width, width))
        self.feature_projection = nn.Sequential(nn.LayerNorm(feature_size), nn.Linear(feature_size, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, num_heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.box = perceptron(width, width, 4)
        last = self.box[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias[2:], SMALL)
        if classes is None:
            self.phrases = PromptEncoder(width, text_encoder)
            self.phrase_projection = nn.Linear(width, width)
            self.none = nn.Linear(width, 1)
            if text_encoder is not None:
                self.bases = {**self.bases, "phrases.model.": text_encoder}
        else:
            self.classify = nn.Linear(width, len(classes) + 1)
        self.target_processor = BoxSetTargetProcessor(None if classes is None else tuple(classes))

    def forward(self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]) -> BoxSets:
        """Predict a set per call, see :meth:`layers.head.Head.forward`."""
        crossed, counts = self.crossed(states, lengths, contexts)
        if not contexts:
            return BoxSets([], [])
        images = [context.image for context in contexts]
        grids = [grid_centres(image.layout.grid[0], image.layout.grid[1], crossed) for image in images]
        places = [sincos_positions(centres, self.width).to(crossed.dtype) for centres in grids]
        projected = self.feature_projection(torch.cat([image.features for image in images]))
        cells = [own + place for own, place in zip(projected.split([len(p) for p in places]), places, strict=True)]
        told = self.state_projection(crossed).split(counts)
        tokens, mask = pad_ragged([torch.cat(pair) for pair in zip(told, cells, strict=True)])
        if self.classes is None:
            classes, known = asked_phrases(contexts, self.phrases, self.phrase_projection)
        else:
            classes, known = [self.classes] * len(contexts), [None] * len(contexts)
        sets = BoxSets([], [], classes)
        for layer in self.layers:
            tokens = layer(tokens, src_key_padding_mask=None if mask is None else ~mask)
            seen = self.norm(tokens)
            own = [row[count : count + len(g)] for row, count, g in zip(seen, counts, grids, strict=True)]
            sets.logits.append([self._logits(row, phrases) for row, phrases in zip(own, known, strict=True)])
            sets.boxes_cxcywh.append([self._boxes(row, centres) for row, centres in zip(own, grids, strict=True)])
        return sets

    def loss(self, predictions: BoxSets, targets: Sequence[HeadTarget]) -> LossTerm:
        """Sum over calls of DETR's loss, over all layers."""
        if not targets:
            return LossTerm(self.zero_touch(), 0)
        sums: dict[str, Tensor] = {}
        for logits, boxes in zip(predictions.logits, predictions.boxes_cxcywh, strict=True):
            for row, box, target in zip(logits, boxes, targets, strict=True):
                wanted = SetTarget(target["labels"].to(row.device), target["boxes_cxcywh"].to(box))
                for name, value in set_loss(row, box, wanted, self.weights).items():
                    sums[name] = sums.get(name, torch.zeros_like(value)) + value
        parts = {name: value.detach() for name, value in sums.items()}
        return LossTerm(torch.stack(list(sums.values())).sum(), len(targets), parts)

    def decode(self, predictions: BoxSets, contexts: Sequence[HeadContext]) -> list[Result]:
        """Boxes in original pixels with their labels, best first; a score is the probability of the label."""
        results: list[Result] = []
        for place, context in enumerate(contexts):
            probabilities = predictions.logits[-1][place].float().softmax(-1)[:, :-1]
            if self.answer == "best":
                scores, rows = probabilities.max(0)
                labels = torch.arange(len(rows), device=rows.device)
            else:
                scores, labels = probabilities.max(-1)
                rows = (scores >= self.threshold).nonzero().flatten()
                scores, labels = scores[rows], labels[rows]
            order = scores.argsort(descending=True, stable=True)[: self.max_boxes]
            corners = box_convert(predictions.boxes_cxcywh[-1][place][rows[order]].float(), "cxcywh", "xyxy")
            classes = predictions.classes[place]
            results.append(
                BoxesResult(
                    context.call,
                    tuple(original_boxes(corners.clamp(0, 1), context)),
                    tuple(scores[order].tolist()),
                    tuple(classes[label] for label in labels[order].tolist()),
                )
            )
        return results

    def _logits(self, cells: Tensor, phrases: Tensor | None) -> Tensor:
        if phrases is None:
            logits: Tensor = self.classify(cells)
            return logits
        return torch.cat([cells @ phrases.T / self.width**0.5, self.none(cells)], dim=-1)

    def _boxes(self, cells: Tensor, centres: Tensor) -> Tensor:
        votes = self.box(cells).float()
        return torch.cat([centres + votes[:, :2].tanh(), votes[:, 2:].sigmoid()], dim=-1)
