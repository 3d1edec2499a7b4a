"""Set prediction: which predicted object answers for which wanted one, and the loss under that assignment."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss


@dataclass(frozen=True)
class SetWeights:
    """DETR's weights (https://arxiv.org/abs/2005.12872), of the matching's costs and of the loss.

    Args:
        class_cost: Of the probability of the wanted class.
        l1_cost: Of the L1 distance of cxcywh.
        giou_cost: Of the generalised IoU.
        class_weight: Of the cross-entropy.
        l1_weight: Of the L1 distance.
        giou_weight: Of the generalised IoU loss.
        none_weight: Weight within the cross-entropy of predictions that answer for nothing.
    """

    class_cost: float = 1.0
    l1_cost: float = 5.0
    giou_cost: float = 2.0
    class_weight: float = 1.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    none_weight: float = 0.1


@dataclass
class SetTarget:
    """What one call wants.

    Args:
        labels: (K,) class of each object.
        boxes_cxcywh: (K, 4) fractions of the input frame.
    """

    labels: Tensor
    boxes_cxcywh: Tensor


def assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The assignment of least cost (Hungarian algorithm).

    Args:
        cost: (N, K); what is not finite is assigned only where nothing else is left.

    Returns:
        min(N, K) rows, ascending, and their columns, on the cost's device.
    """
    most = torch.finfo(torch.float32).max
    finite = torch.nan_to_num(cost.detach().float(), nan=most, posinf=most, neginf=most)
    rows, columns = linear_sum_assignment(finite.cpu().numpy())
    return torch.as_tensor(rows, device=cost.device), torch.as_tensor(columns, device=cost.device)


@torch.no_grad()
def matching_cost(logits: Tensor, boxes_cxcywh: Tensor, target: SetTarget, weights: SetWeights) -> Tensor:
    """(N, K): how badly each prediction answers for each wanted object.

    Args:
        logits: (N, C + 1), the last one for nothing.
        boxes_cxcywh: (N, 4).
        target: What is wanted.
        weights: Of the costs.
    """
    boxes, wanted = boxes_cxcywh.float(), target.boxes_cxcywh.float()
    probability = logits.float().softmax(-1)[:, target.labels]
    l1 = torch.cdist(boxes, wanted, p=1)
    giou = generalized_box_iou(box_convert(boxes, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy"))
    return weights.l1_cost * l1 - weights.class_cost * probability - weights.giou_cost * giou


def class_loss(logits: Tensor, matched: tuple[Tensor, Tensor], labels: Tensor, none_weight: float) -> Tensor:
    """Cross-entropy of one call's N predictions, those without an object belonging to the last class."""
    rows, columns = matched
    none = logits.shape[-1] - 1
    wanted = torch.full((len(logits),), none, device=logits.device)
    wanted[rows] = labels[columns]
    weight = torch.ones(none + 1, device=logits.device)
    weight[none] = none_weight
    return F.cross_entropy(logits.float(), wanted, weight)


def set_loss(logits: Tensor, boxes_cxcywh: Tensor, target: SetTarget, weights: SetWeights) -> dict[str, Tensor]:
    """DETR's loss of one call, weighted: ``class``, ``l1`` and ``giou``, the boxes' per wanted object.

    Args:
        logits: (N, C + 1), the last one for nothing.
        boxes_cxcywh: (N, 4).
        target: What is wanted.
        weights: Of costs and terms.
    """
    matched = assign(matching_cost(logits, boxes_cxcywh, target, weights))
    rows, columns = matched
    boxes, wanted = boxes_cxcywh[rows].float(), target.boxes_cxcywh[columns].float()
    count = max(1, len(target.labels))
    giou = generalized_box_iou_loss(box_convert(boxes, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy"))
    return {
        "class": weights.class_weight * class_loss(logits, matched, target.labels, weights.none_weight),
        "l1": weights.l1_weight * (boxes - wanted).abs().sum() / count,
        "giou": weights.giou_weight * giou.sum() / count,
    }
