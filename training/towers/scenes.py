"""Dense pretraining of an image tower on scenes of known objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, generalized_box_iou_loss

from data.media import decode_mask
from data.records import Record
from layers.head import LossTerm
from layers.layout import ItemLayout
from training.towers.objectives import Encode, Outcome, TowerBatch, TowerObjective

INK_SHARE = 0.15
"""A cell shows an object whose ink covers at least this share of it; with less, but some, it is undecided."""
UNDECIDED = -1


@dataclass(frozen=True)
class SceneRule:
    """``meta.objects`` (digit, colour, box_xyxy, mask) on the encoder's grid.

    Args:
        colours: The names of the colours, in the order of the classes.
    """

    colours: tuple[str, ...]

    def __call__(self, record: Record, layout: ItemLayout) -> dict[str, Tensor] | None:
        """Targets per cell and per object.

        Returns:
            ``cells`` (N,): 0 for background, 1 + object for its ink, -1 for undecided cells; ``heat`` (N,): a
            Gaussian about each object's centre, 1 in its cell; ``digits``, ``colours`` (K,); ``boxes`` (K, 4) xyxy
            normalised to the input frame.  None for a record without objects.

        Raises:
            ValueError: For an unknown colour.
        """
        objects = record.meta.get("objects")
        if not objects:
            return None
        unknown = sorted({item["colour"] for item in objects} - set(self.colours))
        if unknown:
            raise ValueError(f"record '{record.key}': expected colours {self.colours}, got {unknown}")
        assert layout.transform is not None
        width, height = layout.transform.input_size
        rows, columns = layout.grid
        masks = torch.stack([layout.transform.apply_mask(decode_mask(item["mask"])) for item in objects])
        share = F.adaptive_avg_pool2d(masks.float(), (rows, columns)).flatten(1)  # (K, N)
        largest, owner = share.max(0)
        cells = torch.where(largest >= INK_SHARE, owner + 1, torch.where(largest > 0, UNDECIDED, 0))
        boxes = layout.transform.apply_boxes([tuple(item["box_xyxy"]) for item in objects])
        boxes = (boxes / torch.tensor([width, height, width, height])).float()
        return {
            "cells": cells,
            "heat": centre_heat(boxes, rows, columns),
            "digits": torch.tensor([int(item["digit"]) for item in objects]),
            "colours": torch.tensor([self.colours.index(item["colour"]) for item in objects]),
            "boxes": boxes,
        }


def centre_heat(boxes: Tensor, rows: int, columns: int) -> Tensor:
    """Gaussians about the centres of normalised boxes (K, 4), an eighth of the box wide: (rows * columns,)."""
    size = boxes.new_tensor([columns, rows])
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2 * size).floor()  # (K, 2) cells
    sigma = ((boxes[:, 2:] - boxes[:, :2]) * size / 8).clamp(min=0.4)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    distance = (torch.stack([x, y], -1).flatten(0, 1)[:, None] - centre) / sigma  # (N, K, 2)
    return torch.exp(-0.5 * distance.square().sum(-1)).amax(1)


class DenseSceneObjective(TowerObjective):
    """Per cell of the grid: the digit and colour of the ink that it shows, its object's box, and the object's centre.

    Cross-entropies with a background class (ink and background cells weigh the same), L1 plus generalised IoU
    (https://arxiv.org/abs/1902.09630) of the box on ink cells, and CenterNet's penalty-reduced focal loss
    (https://arxiv.org/abs/1904.07850) of the centres; and, since that learns sooner, the cross-entropy of each object's
    digit by the mean vote of its cells.  One linear map reads all of it, so that a language model can.

    Args:
        hidden_size: Width of the encoder's features.
        num_digits: Classes of objects.
        colours: Names of the colours.
        weights: Loss -> weight, of "object", "digit", "colour", "box" and "centre"; what is not named is not learned.
            By default all are.

    Raises:
        ValueError: For an unknown loss.
    """

    def __init__(
        self,
        hidden_size: int,
        num_digits: int = 10,
        colours: Sequence[str] = ("red", "green", "blue", "yellow", "purple", "white"),
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.target_rule = SceneRule(tuple(colours))
        # The box must not drown what the ink shows.
        known = {"object": 2.0, "digit": 1.0, "colour": 1.0, "box": 0.2, "centre": 0.5}
        if weights is not None and not set(weights) <= set(known):
            raise ValueError(f"weights: expected some of {sorted(known)}, got {sorted(weights)}")
        self.loss_weights = known if weights is None else {name: weights.get(name, 0.0) for name in known}
        self.widths = [num_digits + 1, len(colours) + 1, 4, 1]
        self.read = nn.Linear(hidden_size, sum(self.widths))
        with torch.no_grad():
            self.read.bias[-5:-1] = 0.5  # boxes begin at the centre of the frame
            self.read.bias[-1] = -3.0  # centres are rare

    def forward(self, encode: Encode, batch: TowerBatch) -> Outcome:
        """The losses; in evaluation also accuracies per object."""
        digits, colours, boxes, heat = self.read(encode(batch.items)).float().split(self.widths, dim=-1)
        target, first = batch.targets, 0
        cells, owners = [], []
        for item in target:
            cells.append(item["cells"])
            owners.append(torch.where(item["cells"] > 0, item["cells"] - 1 + first, UNDECIDED))
            first += len(item["digits"])
        cell, owner = torch.cat(cells), torch.cat(owners)
        ink = cell > 0
        digit = torch.cat([item["digits"] for item in target])
        colour = torch.cat([item["colours"] for item in target])
        box = torch.cat([item["boxes"] for item in target])
        votes = _vote(digits[ink][:, 1:].log_softmax(-1), owner[ink], len(digit))
        area = torch.bincount(owner[ink], minlength=len(digit)).clamp(min=1)[:, None]
        losses = {
            "object": LossTerm(F.cross_entropy(votes / area, digit, reduction="sum"), len(digit)),
            "digit": _balanced_cross_entropy(digits, digit + 1, owner, cell),
            "colour": _balanced_cross_entropy(colours, colour + 1, owner, cell),
            "box": _box_loss(boxes[ink], box[owner[ink]]),
            "centre": _focal_loss(heat[:, 0], torch.cat([item["heat"] for item in target])),
        }
        outcome = Outcome(losses)
        if not self.training:
            hues = _vote(colours[ink][:, 1:].log_softmax(-1), owner[ink], len(digit))
            places = _vote(boxes[ink], owner[ink], len(digit))
            iou = box_iou(places / area, box).diagonal()
            found = self._peaks(heat[:, 0], batch)
            expected = torch.tensor([len(item["digits"]) for item in target], device=found.device)
            outcome.metrics = {
                "digit_accuracy": ((votes.argmax(1) == digit).double().sum(), len(digit)),
                "colour_accuracy": ((hues.argmax(1) == colour).double().sum(), len(digit)),
                "box_iou": (iou.double().sum(), len(digit)),
                "box_acc50": ((iou >= 0.5).double().sum(), len(digit)),
                "count_accuracy": ((found == expected).double().sum(), len(expected)),
            }
        return outcome

    def _peaks(self, heat: Tensor, batch: TowerBatch) -> Tensor:
        """Local maxima above one half per item: (B,)."""
        counts = []
        for row, layout in zip(batch.layout.split(heat), batch.layout.items, strict=True):
            plane = row.reshape(1, *layout.grid)
            counts.append(((plane > 0) & (plane == F.max_pool2d(plane, 3, 1, 1))).sum())
        return torch.stack(counts)


def _balanced_cross_entropy(logits: Tensor, classes: Tensor, owner: Tensor, cell: Tensor) -> LossTerm:
    """Cross-entropy of cells, background as class 0; the background counts as much as all ink together."""
    ink, background = cell > 0, cell == 0
    count = int(ink.sum())
    drawn = F.cross_entropy(logits[ink], classes[owner[ink]], reduction="sum")
    empty = F.cross_entropy(logits[background], torch.zeros_like(cell[background]), reduction="mean")
    return LossTerm(drawn + empty * count, count)


def _box_loss(found: Tensor, expected: Tensor) -> LossTerm:
    total = 5 * F.l1_loss(found, expected, reduction="sum")
    ordered = torch.cat([found[:, :2], torch.maximum(found[:, 2:], found[:, :2] + 1e-3)], dim=1)
    return LossTerm(total + generalized_box_iou_loss(ordered, expected, reduction="sum"), len(found))


def _focal_loss(logits: Tensor, heat: Tensor) -> LossTerm:
    peak = heat == 1
    missed = -(torch.sigmoid(-logits) ** 2 * F.logsigmoid(logits))[peak].sum()
    spurious = -((1 - heat) ** 4 * torch.sigmoid(logits) ** 2 * F.logsigmoid(-logits))[~peak].sum()
    return LossTerm(missed + spurious, int(peak.sum()))


def _vote(values: Tensor, owner: Tensor, objects: int) -> Tensor:
    """Sum the cells' values (n, c) per object: (objects, c)."""
    return values.new_zeros(objects, values.shape[1]).index_add(0, owner, values)
