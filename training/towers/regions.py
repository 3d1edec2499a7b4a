"""Learning to propose regions: every object once, whatever it is, with its mask and its box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou_loss
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from data.media import decode_mask
from data.records import Record
from encoders.vision.regions import Proposals, RegionEncoder
from layers.head import LossTerm
from layers.layout import ItemLayout
from training.towers.objectives import Encode, Outcome, TowerBatch, TowerObjective

Matching = list[tuple[Tensor, Tensor]]
"""Per image the queries and the objects that were matched, index by index."""

OBJECT = 0
"""The only class; the other output of ``objectness`` is none."""


@dataclass
class Found:
    """What a tower found in the images of a batch.

    Args:
        encoder: The tower.
        cells: (B, N, d) of its grid.
        proposals: Of its detector.
        pairs: Which proposals stand for which objects.
    """

    encoder: RegionEncoder
    cells: Tensor
    proposals: Proposals
    pairs: Matching


@dataclass(frozen=True)
class RegionRule:
    """``meta.objects`` (box_xyxy, mask) in the encoder's input frame."""

    def __call__(self, record: Record, layout: ItemLayout) -> dict[str, Tensor] | None:
        """Targets per object.

        Returns:
            ``masks`` (K, H, W) bool of the input frame and ``boxes`` (K, 4) xyxy in fractions of it; None for a record
            without objects.
        """
        objects = record.meta.get("objects")
        if not objects:
            return None
        assert layout.transform is not None
        size = torch.tensor(layout.transform.input_size * 2)
        masks = [layout.transform.apply_mask(decode_mask(item["mask"])) for item in objects]
        boxes = layout.transform.apply_boxes([tuple(item["box_xyxy"]) for item in objects])
        return {"masks": torch.stack(masks), "boxes": (boxes / size).float()}


class RegionObjective(TowerObjective):
    """Mask2Former's losses (https://arxiv.org/abs/2112.01527) with objects of one class, and those of boxes.

    Cross-entropy, mask cross-entropy and dice of the matched queries at every layer of the decoder, by transformers'
    own criterion; L1 and generalised IoU of the last layer's boxes under the same assignment of queries to objects.

    Args:
        hidden_size: Width of the encoder's features.
        num_points: Points at which masks are compared.
        class_weight: Weight of the cross-entropy of objects and none.
        mask_weight: Of the masks' cross-entropy.
        dice_weight: Of their dice loss.
        l1_weight: Of the boxes' L1.
        giou_weight: Of their generalised IoU.
        none_weight: Weight of queries without an object within the cross-entropy.
    """

    def __init__(
        self,
        hidden_size: int,
        num_points: int = 1024,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        none_weight: float = 0.1,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.target_rule = RegionRule()
        config = Mask2FormerConfig(
            id2label={OBJECT: "object"},
            train_num_points=num_points,
            class_weight=class_weight,
            mask_weight=mask_weight,
            dice_weight=dice_weight,
            no_object_weight=none_weight,
        )
        weights = {"loss_cross_entropy": class_weight, "loss_mask": mask_weight, "loss_dice": dice_weight}
        self.criterion = Mask2FormerLoss(config, weights)
        self.loss_weights = {name.removeprefix("loss_"): weight for name, weight in weights.items()}
        self.loss_weights |= {"box_l1": l1_weight, "box_giou": giou_weight}

    def forward(self, encode: Encode, batch: TowerBatch) -> Outcome:
        """The losses; in evaluation also how many objects a box of as many best proposals as there are tokens finds.

        Raises:
            ValueError: If the tower proposes nothing.
        """
        return self.compare(encode, batch)[0]

    def compare(self, encode: Encode, batch: TowerBatch) -> tuple[Outcome, Found]:
        """What :meth:`forward` returns, and what was found, for objectives that learn more of it.

        Raises:
            ValueError: If the tower proposes nothing.
        """
        encoder = encode.encoder
        if not isinstance(encoder, RegionEncoder):
            raise ValueError(f"RegionObjective: expected a RegionEncoder, got {type(encoder).__name__}")
        cells, proposals = encoder.propose(encoder.collate(batch.items))
        masks = [item["masks"].float() for item in batch.targets]
        classes = [torch.full((len(item),), OBJECT, device=item.device) for item in masks]
        layers = list(zip(proposals.masks, proposals.objectness, strict=True))
        auxiliary: Any = [{"masks_queries_logits": m, "class_queries_logits": c} for m, c in layers[:-1]]
        last_masks, last_classes = layers[-1]
        matched: list[Matching] = []
        hook = self.criterion.matcher.register_forward_hook(lambda module, inputs, output: matched.append(output))
        try:
            losses = self.criterion(last_masks, last_classes, masks, classes, auxiliary)
        finally:
            hook.remove()
        count = sum(len(item) for item in masks)
        terms: dict[str, Tensor] = {}
        for name, value in losses.items():  # one per layer, such as loss_mask_3
            kind = next(kind for kind in self.loss_weights if name.startswith(f"loss_{kind}"))
            terms[kind] = terms.get(kind, torch.zeros_like(value)) + value
        terms |= self._box_losses(proposals, matched[0], batch)  # the criterion matches the last layer first
        outcome = Outcome({name: LossTerm(value * count, count) for name, value in terms.items()})
        if not self.training:
            outcome.metrics = {"box_recall50": (self._recalled(encoder, proposals, batch), count)}
        return outcome, Found(encoder, cells, proposals, matched[0])

    @staticmethod
    def _box_losses(proposals: Proposals, pairs: Matching, batch: TowerBatch) -> dict[str, Tensor]:
        proposed = torch.cat([proposals.boxes[row, query] for row, (query, _) in enumerate(pairs)])
        targets = [item["boxes"] for item in batch.targets]
        wanted = torch.cat([own[chosen.to(own.device)] for own, (_, chosen) in zip(targets, pairs, strict=True)])
        count = max(len(wanted), 1)
        return {
            "box_l1": F.l1_loss(proposed, wanted, reduction="sum") / count,
            "box_giou": generalized_box_iou_loss(proposed, wanted, reduction="sum") / count,
        }

    @staticmethod
    def _recalled(encoder: RegionEncoder, proposals: Proposals, batch: TowerBatch) -> Tensor:
        best = proposals.best(encoder.processor.num_regions)
        hits = [
            (box_iou(item["boxes"], proposals.boxes[row, best[row]]).amax(1) >= 0.5).sum()
            for row, item in enumerate(batch.targets)
        ]
        return torch.stack(hits).sum().double()
