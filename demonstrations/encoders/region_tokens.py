"""Paper 37: tokens of regions beside those of the whole image find captions, and they alone detect.

Uni-Perceiver v2 (https://arxiv.org/abs/2211.09808) reads an image as the cells of a coarse map and as regions that a
detector proposes; one decoder reads images and texts alike, and everything is the cosine of two of its outputs: of an
image and its caption, of a token and the name of what it shows. Here the repository's region encoder learns, on scenes
of digits, to propose them and to name what its cells and its regions show. Then it is frozen, and a small decoder
learns from cells, from regions, or from both, to find captions and to name tokens. A detection is a token that was
named, with its box: that of the region, or the cell itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

from data.quickstart.scenes import COLOURS, SCENE_SIZE
from demonstrations.demonstration import Claim, Demonstration, Metrics
from demonstrations.scene_tower import (
    IGNORED,
    NAMES,
    NOTHING,
    REGIONS,
    SIDE,
    WIDTH,
    Images,
    images_of,
    names_of,
    tower,
    trained_tower,
    write_scenes,
)
from eval.metrics.detection import coco_average_precision

STEPS, BATCH, LEARNING_RATE = 600, 64, 1e-3
WORDS = ("", "a", "and", "nothing", *COLOURS, *map(str, range(10)))
LONGEST = 13  # words of a caption of four


def word_ids(texts: Sequence[str]) -> Tensor:
    """(n, LONGEST) indices into :data:`WORDS`, 0 behind the last."""
    ids = torch.zeros(len(texts), LONGEST, dtype=torch.int64)
    for row, text in enumerate(texts):
        words = [WORDS.index(word) for word in text.replace(",", "").split()]
        ids[row, : len(words)] = torch.tensor(words)
    return ids


class UnifiedDecoder(nn.Module):
    """Reads the tokens of an image or the words of a text behind one more; what it makes of that stands for the whole.

    Args:
        use_cells: Whether it gets an image's cells.
        use_regions: Whether it gets its regions.
    """

    def __init__(self, use_cells: bool, use_regions: bool) -> None:
        super().__init__()
        self.use_cells, self.use_regions = use_cells, use_regions
        self.whole = nn.Parameter(torch.randn(WIDTH) * 0.02)
        self.kinds = nn.Embedding(3, WIDTH)  # cells, regions, words
        self.places, self.positions = nn.Embedding(SIDE**2, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.words = nn.Embedding(len(WORDS), WIDTH, padding_idx=0)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.scales = nn.Parameter(torch.full((2,), math.log(10.0)))  # of captions, and of names

    def images(self, cells: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, d) of whole images, and (B, M, d) of their tokens, of unit norm."""
        cells, regions = cells + self.kinds.weight[0] + self.places.weight, regions + self.kinds.weight[1]
        return self._read(self.chosen(cells, regions), None)

    def texts(self, ids: Tensor) -> Tensor:
        """(B, d) of texts, of unit norm."""
        return self._read(self.words(ids) + self.kinds.weight[2] + self.positions.weight, ids == 0)[0]

    def chosen(self, of_cells: Tensor, of_regions: Tensor) -> Tensor:
        """What belongs to the tokens that it gets: (B, M, ...) of (B, N, ...) and (B, R, ...)."""
        both = ((of_cells, self.use_cells), (of_regions, self.use_regions))
        return torch.cat([part for part, used in both if used], dim=1)

    def _read(self, tokens: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        whole = self.whole.expand(len(tokens), 1, -1)
        mask = None if padding is None else F.pad(padding, (1, 0))
        states = self.layers(torch.cat([whole, tokens], dim=1), src_key_padding_mask=mask)
        states = F.normalize(states, dim=-1)
        return states[:, 0], states[:, 1:]


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Train the tower, unless that was done, and a decoder on its tokens; captions found and objects detected."""
    shared = folder.parent / f"shared-{seed}"
    write_scenes(shared, seed)
    torch.manual_seed(seed)
    state = "random" if arm == "random_weights" else "trained"
    made = tower() if state == "random" else trained_tower(shared, seed)
    train, test = (images_of(made, shared, split, f"{state}-{split}") for split in ("train", "test"))
    torch.manual_seed(seed)
    decoder = UnifiedDecoder(arm != "regions", arm != "cells")
    _fit(decoder, train, seed)
    decoder.eval()
    return {**_found(decoder, test), **_detected(decoder, test), "proposed": _proposed(test)}


def _fit(decoder: UnifiedDecoder, images: Images, seed: int) -> None:
    optimizer = torch.optim.AdamW(decoder.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, STEPS, pct_start=0.1)
    rng = np.random.default_rng([seed, 1])
    captions, names = images.captions(), decoder.chosen(*images.names())
    ids, candidates = word_ids(captions), word_ids([*NAMES, "nothing"])
    same = torch.from_numpy(np.unique(captions, return_inverse=True)[1])
    weight = torch.ones(NOTHING + 1)
    weight[NOTHING] = 0.1
    for _ in range(STEPS):
        rows = torch.from_numpy(rng.permutation(len(captions))[:BATCH])
        whole, tokens = decoder.images(images.cells[rows], images.regions[rows])
        scales = decoder.scales.exp()
        logits = scales[0] * whole @ decoder.texts(ids[rows]).T
        twins = (same[rows][:, None] == same[rows]) & ~torch.eye(BATCH, dtype=torch.bool)
        logits = logits.masked_fill(twins, -torch.inf)  # another image of the same caption is not wrong
        truth = torch.arange(BATCH)
        retrieval = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
        named = (scales[1] * tokens @ decoder.texts(candidates).T).flatten(0, 1)
        loss = retrieval + F.cross_entropy(named, names[rows].flatten(), weight, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def _found(decoder: UnifiedDecoder, images: Images) -> Metrics:
    """Images whose caption is the nearest text, captions whose image is the nearest, of all in the test."""
    captions = images.captions()
    scores = decoder.images(images.cells, images.regions)[0] @ decoder.texts(word_ids(captions)).T
    nearest = {"caption_found": scores.argmax(1).tolist(), "image_found": scores.argmax(0).tolist()}
    metrics = {
        name: fmean(captions[best] == own for best, own in zip(places, captions, strict=True))
        for name, places in nearest.items()
    }
    metrics["retrieval"] = fmean(metrics.values())
    return {**metrics, "constant": max(Counter(captions).values()) / len(captions)}


@torch.no_grad()
def _detected(decoder: UnifiedDecoder, images: Images) -> Metrics:
    """Average precision over the names; of tokens of one name that overlap by half, the likeliest counts."""
    _, tokens = decoder.images(images.cells, images.regions)
    logits = decoder.scales[1].exp() * tokens @ decoder.texts(word_ids([*NAMES, "nothing"])).T
    likely, names = logits.softmax(-1)[..., :NOTHING].max(-1)
    squares = _squares().expand(len(tokens), -1, -1)
    boxes = decoder.chosen(squares, images.boxes)
    scores = likely * decoder.chosen(torch.ones(squares.shape[:2]), images.objectness)
    detections: list[dict[str, Any]] = []
    for image, (own, score, name) in enumerate(zip(boxes * SCENE_SIZE, scores, names, strict=True)):
        for place in batched_nms(own, score, name, 0.5).tolist():
            found = {"image_id": image, "category_id": int(name[place]), "score": float(score[place])}
            detections.append({**found, "bbox": _xywh(own[place])})
    scored = coco_average_precision(_annotations(images), detections)
    return {"ap": scored["AP"], "ap50": scored["AP50"]}


def _squares() -> Tensor:
    """(N, 4) the cells themselves, row by row, in fractions of the image."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return torch.stack([x, y, x + 1, y + 1], dim=-1).flatten(0, 1) / SIDE


def _xywh(box: Tensor) -> list[float]:
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def _annotations(images: Images) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image, target in enumerate(images.targets):
        for name, box in zip(names_of(target).tolist(), target["boxes"] * SCENE_SIZE, strict=True):
            place = {"id": len(annotations) + 1, "image_id": image}
            annotations.append({**place, "category_id": name, "bbox": _xywh(box)})
    size = {"width": SCENE_SIZE, "height": SCENE_SIZE}
    return {
        "images": [{"id": image, **size} for image in range(len(images.targets))],
        "categories": [{"id": number, "name": name} for number, name in enumerate(NAMES)],
        "annotations": annotations,
    }


def _proposed(images: Images) -> float:
    """Objects that a proposed box covers by half or more."""
    pairs = zip(images.boxes, images.targets, strict=True)
    return float(torch.cat([box_iou(target["boxes"], own).amax(1) >= 0.5 for own, target in pairs]).float().mean())


DEMONSTRATION = Demonstration(
    paper=37,
    address="https://arxiv.org/abs/2211.09808",
    shows="captions found and digits detected by a small decoder on the cells of an image, on its regions, or on both",
    arms={
        "cells": f"the {SIDE**2} cells of a frozen tower's map alone",
        "regions": f"the {REGIONS} regions alone that the tower proposes",
        "both": "the cells, then the regions",
        "random_weights": "control: both, from a tower with random weights",
    },
    measure=measure,
    claims=[
        Claim(
            "cells and regions together find .05 more than cells alone",
            lambda mean: mean("both", "retrieval") >= mean("cells", "retrieval") + 0.05,
        ),
        Claim(
            "regions detect: average precision at an IoU of .5 is .30 at least with them, and .05 at most without",
            lambda mean: min(mean("both", "ap50"), mean("regions", "ap50")) >= 0.3 and mean("cells", "ap50") <= 0.05,
        ),
        Claim(
            "it is the tower that finds: with random weights .10 less",
            lambda mean: mean("random_weights", "retrieval") <= mean("both", "retrieval") - 0.1,
        ),
    ],
    controls={"random_weights": ("random_weights", "retrieval"), "constant": ("both", "constant")},
    controls_na={
        "blind": "without the image there is nothing to find",
        "shuffled": "with another's image that one's caption is found, by construction",
        "zeroed": "images of zeros are all alike, which is the constant answer",
    },
    seeds=2,
)
