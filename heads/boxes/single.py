"""Boxes from a hidden state that queries the image's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou_loss

from heads.attend import Relevance, StateReader, grid_centres, pad_ragged, perceptron
from heads.boxes.targets import BoxTargetProcessor, original_boxes
from heads.links import LinkedHead
from layers.calls import BoxesResult, HeadContext, Result
from layers.head import HeadTarget, Link, LossTerm


@dataclass
class BoxPredictions:
    """Predicted boxes of n calls.

    Args:
        boxes_cxcywh: (n, 4) fractions of the input frame.
        heat: (n, N) log-probabilities over image features, -inf at padding.
        centres: (n, N, 2) x and y of those features as fractions of the input frame.
    """

    boxes_cxcywh: Tensor
    heat: Tensor
    centres: Tensor


class BoxHead(LinkedHead):
    """One box per call: the state attends over the image features and every feature votes for a box.

    The state, after a few cross-attention layers, scores each feature (dot product) and each feature regresses
    the box from its own place; the answer is the mean of the votes under the softmax of the scores,
    ``box = Σ_i softmax(s)_i · (x_i + dx_i, y_i + dy_i, w_i, h_i)``. The loss is ``5·L1 + 2·GIoU`` as in DETR
    (https://arxiv.org/abs/2005.12872) plus the negative log of the attention that falls inside the box.

    Args:
        state_size: Width of the language model's states.
        feature_size: Width of the image encoder's features.
        width: Inner width.
        num_layers: Cross-attention layers.
        num_heads: Attention heads.
        l1_weight: Weight of the L1 distance of cxcywh.
        giou_weight: Weight of the generalised IoU loss.
        heat_weight: Weight of the attention inside the box.
        link: What crosses from the language model.
        num_queries: Learned queries, for the link ``queries``.
        text_encoder: Directory of a pretrained text encoder, for the links ``text`` and ``boxes``.
    """

    def __init__(
        self,
        state_size: int,
        feature_size: int,
        width: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        heat_weight: float = 1.0,
        link: Link = "hidden",
        num_queries: int = 0,
        text_encoder: str | None = None,
    ) -> None:
        super().__init__(link, state_size, num_queries, text_encoder=text_encoder)
        self.reader = StateReader(state_size, feature_size, width, num_layers, num_heads)
        self.relevance = Relevance(width)
        self.query_bias = nn.Linear(width, width)
        self.vote = perceptron(width, width, 4)
        self.l1_weight, self.giou_weight, self.heat_weight = l1_weight, giou_weight, heat_weight
        self.target_processor = BoxTargetProcessor()

    def forward(self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]) -> BoxPredictions:
        """Predict one box per call, see :meth:`layers.head.Head.forward`."""
        states, lengths = self.crossed(states, lengths, contexts)
        if not contexts:
            return BoxPredictions(states.new_zeros(0, 4), states.new_zeros(0, 0), states.new_zeros(0, 0, 2))
        images = [context.image for context in contexts]
        grids = [image.layout.grid for image in images]
        reading = self.reader(states, lengths, [image.features for image in images], grids)
        centres, _ = pad_ragged([grid_centres(rows, columns, states) for rows, columns in grids])
        votes = self.vote(reading.values + self.query_bias(reading.query)[:, None]).float()
        boxes = torch.cat([centres + votes[..., :2].tanh(), votes[..., 2:].sigmoid()], dim=-1)
        heat = self.relevance(reading).float().log_softmax(dim=-1)
        return BoxPredictions(torch.einsum("nk,nkc->nc", heat.exp(), boxes), heat, centres)

    def loss(self, predictions: BoxPredictions, targets: Sequence[HeadTarget]) -> LossTerm:
        """Sum of ``5·L1 + 2·GIoU + heat`` over calls."""
        if not targets:
            return LossTerm(self.zero_touch(), 0)
        boxes = predictions.boxes_cxcywh
        wanted = torch.stack([target["boxes_xyxy"] for target in targets]).to(boxes)
        l1 = (boxes - box_convert(wanted, "xyxy", "cxcywh")).abs().sum()
        giou = generalized_box_iou_loss(box_convert(boxes, "cxcywh", "xyxy"), wanted, reduction="sum")
        inside = _inside(predictions.centres, wanted) & predictions.heat.isfinite()
        distance = (predictions.centres - wanted.view(-1, 2, 2).mean(dim=1)[:, None]).square().sum(dim=-1)
        distance = distance.masked_fill(predictions.heat.isinf(), float("inf"))
        nearest = distance == distance.amin(dim=-1, keepdim=True)  # a box smaller than a cell may hold no centre
        allowed = torch.where(inside.any(dim=-1, keepdim=True), inside, nearest)
        heat = -predictions.heat.masked_fill(~allowed, float("-inf")).logsumexp(dim=-1).sum()
        total = self.l1_weight * l1 + self.giou_weight * giou + self.heat_weight * heat
        return LossTerm(total, len(targets), {"l1": l1.detach(), "giou": giou.detach(), "heat": heat.detach()})

    def decode(self, predictions: BoxPredictions, contexts: Sequence[HeadContext]) -> list[Result]:
        """Boxes in original pixels; a box's score is the attention that falls inside it."""
        boxes = box_convert(predictions.boxes_cxcywh.float(), "cxcywh", "xyxy").clamp(0, 1)
        scores = (predictions.heat.exp() * _inside(predictions.centres, boxes)).sum(dim=-1).clamp(0, 1)
        results: list[Result] = []
        for box, score, context in zip(boxes, scores.tolist(), contexts, strict=True):
            results.append(BoxesResult(context.call, tuple(original_boxes(box[None], context)), (score,)))
        return results


def _inside(centres: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """(n, N) whether each centre (n, N, 2) lies within its call's box (n, 4)."""
    low, high = boxes_xyxy[:, None, :2], boxes_xyxy[:, None, 2:]
    return ((centres >= low) & (centres <= high)).all(dim=-1)
