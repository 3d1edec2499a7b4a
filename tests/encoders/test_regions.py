"""Region tokens: transformers' own proposals, their order, what a token is made of, and that the tower learns them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Mask2FormerConfig, Mask2FormerModel

from encoders.vision import RegionEncoder
from encoders.vision.regions import MASK_SIDE, box_features
from layers.layout import ItemLayout, Layout
from models.media import seen_by_heads
from models.projectors import MLPProjector, PoolProjector, RegionProjector
from training.towers.objectives import Encode, TowerBatch
from training.towers.regions import RegionObjective

SIZE, QUERIES, REGIONS, WIDTH = 64, 7, 4, 32
BACKBONE: dict[str, Any] = {"model_type": "swin", "image_size": SIZE, "embed_dim": 8, "depths": [1, 1, 1, 1]}
BACKBONE |= {"num_heads": [1, 2, 4, 8], "window_size": 4, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
CONFIG: dict[str, Any] = {
    "backbone_config": BACKBONE,
    "feature_size": WIDTH,
    "mask_feature_size": WIDTH,
    "hidden_dim": WIDTH,
    "encoder_feedforward_dim": 48,
    "dim_feedforward": 48,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "num_attention_heads": 4,
    "num_queries": QUERIES,
}


def encoder(**arguments: Any) -> RegionEncoder:
    torch.manual_seed(0)
    return RegionEncoder(config=CONFIG, image_size=SIZE, num_regions=REGIONS, **arguments).eval()


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, height, width), generator=generator).to(torch.uint8) for width, height in sizes]


def encoded(tower: RegionEncoder, rasters: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    items, layouts = zip(*[tower.processor(raster) for raster in rasters], strict=True)
    return Layout(layouts).split(tower(tower.collate(items), Layout(layouts)))


@pytest.mark.parametrize(("level", "side"), [(0, 2), (1, 4), (2, 8)])
def test_an_image_alone_is_as_among_others_and_has_the_predicted_features(level: int, side: int) -> None:
    tower = encoder(level=level)
    rasters = images((64, 64), (80, 40), (3, 2))  # one pixel would be noise: flat maps, normalised
    for raster, features in zip(rasters, encoded(tower, rasters), strict=True):
        layout = tower.processor.layout((raster.shape[2], raster.shape[1]))
        assert layout.grid == (side, side) and layout.regions == REGIONS
        assert features.shape == (side * side + REGIONS, WIDTH) == (layout.num_features, tower.hidden_size)
        torch.testing.assert_close(features, encoded(tower, [raster])[0], atol=1e-4, rtol=1e-4)


def test_tokens_are_made_of_the_librarys_proposals(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = Mask2FormerModel(Mask2FormerConfig(**CONFIG)).eval()
    theirs.save_pretrained(tmp_path)
    tower = RegionEncoder(pretrained=str(tmp_path), image_size=SIZE, num_regions=REGIONS).eval()
    (raster,) = images((64, 64))
    (features,) = encoded(tower, [raster])
    with torch.no_grad():
        output = theirs(tower.normalise(raster[None]), output_hidden_states=True)
        states = output.transformer_decoder_intermediate_states[-1][:, 0]
        scores = tower.objectness(states).softmax(-1)[:, 0]
        order = scores.argsort(descending=True)[:REGIONS]
        x, y, width, height = tower.box(states).sigmoid().unbind(-1)
        boxes = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)
        pooled = F.adaptive_avg_pool2d(output.masks_queries_logits[-1][0].sigmoid(), MASK_SIDE).flatten(1)
        tokens = states + tower.box_embedding(box_features(boxes)) + tower.mask_embedding(pooled)
        torch.testing.assert_close(features[4:], tower.region_norm(tokens)[order], atol=1e-5, rtol=1e-4)
    assert dict(tower.bases) == {"detector.": str(tmp_path)}


def test_a_projector_for_grids_and_one_for_regions() -> None:
    torch.manual_seed(0)
    projector = RegionProjector(PoolProjector(WIDTH, 16), WIDTH, 16)
    items = [ItemLayout((4, 4), (8, 8), regions=REGIONS), ItemLayout((2, 3), (8, 8), regions=2)]
    layout = Layout(items)
    features = torch.randn(layout.total, WIDTH)
    tokens, projected = projector(features, layout)
    assert projected.lengths == (4 + REGIONS, 2 + 2) == tuple(projector.token_rule.num_tokens(item) for item in items)
    for piece, item, given in zip(layout.split(features), items, projected.split(tokens), strict=True):
        torch.testing.assert_close(projector(piece, Layout([item]))[0], given)
    torch.testing.assert_close(tokens[4 : 4 + REGIONS], projector.regions(features[16 : 16 + REGIONS]))
    assert MLPProjector(WIDTH, 16)(features, layout)[0].shape == (layout.total, 16)
    with pytest.raises(ValueError, match="put a RegionProjector around"):
        PoolProjector(WIDTH, 16)(features, layout)


def test_heads_get_the_cells_alone() -> None:
    layout = ItemLayout((2, 3), (8, 8), regions=REGIONS)
    features = torch.randn(6 + REGIONS, WIDTH)
    seen = seen_by_heads("image", layout, {"pixel_values": torch.zeros(3, 8, 8)}, features)
    assert torch.equal(seen.features, features[:6]) and seen.layout.num_features == 6
    assert seen.inputs["pixel_values"].shape == (3, 8, 8)
    tiled = ItemLayout((2, 2), (8, 8), tiles=(1, 2))
    views = seen_by_heads(
        "image", tiled, {"pixel_values": torch.arange(3)[:, None, None, None]}, torch.randn(12, WIDTH)
    )
    assert views.inputs["pixel_values"].flatten().tolist() == [0] and views.layout.num_features == 4
    assert len(views.features) == 4


def test_the_tower_learns_to_propose_what_is_there() -> None:
    torch.manual_seed(0)
    tower, objective = encoder(level=2).train(), RegionObjective(WIDTH, num_points=64)
    boxes = torch.tensor([[[0.1, 0.1, 0.4, 0.4], [0.5, 0.6, 0.9, 0.9]], [[0.2, 0.5, 0.5, 0.8], [0.6, 0.1, 0.9, 0.3]]])
    rasters, targets = [], []
    for own in boxes:
        raster, masks = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8), torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
        for index, (x1, y1, x2, y2) in enumerate((own * SIZE).round().int().tolist()):
            masks[index, y1:y2, x1:x2] = True
            raster[index, y1:y2, x1:x2] = 255
        rasters.append(raster)
        targets.append({"masks": masks, "boxes": own})
    items, layouts = zip(*[tower.processor(raster) for raster in rasters], strict=True)
    batch = TowerBatch(list(items), Layout(layouts), targets, ["a", "b"])
    encode = Encode(tower, batch.layout)
    optimizer = torch.optim.AdamW([*tower.parameters(), *objective.parameters()], 2e-3)
    losses = []
    for _ in range(60):
        outcome = objective(encode, batch)
        weights = objective.loss_weights
        assert set(outcome.losses) == set(weights)
        loss = sum(weights[name] * term.total / term.count for name, term in outcome.losses.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    features = tower(tower.collate(items), batch.layout)
    features.mul(torch.randn_like(features)).sum().backward()
    unused = {name for name, value in tower.named_parameters() if value.grad is None}
    assert {name.split(".")[-2] for name in unused} <= {"layernorm"}  # the backbone's own, which no map passes
    objective.eval()
    outcome = objective(encode, batch)
    assert outcome.metrics["box_recall50"][1] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": CONFIG, "num_regions": 8, "image_size": SIZE}, "expected 1 to 7, the detector's queries, got 8"),
        ({}, "expected pretrained or config"),
    ],
)
def test_what_cannot_be_built(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionEncoder(**arguments)


def test_another_tower_has_no_proposals() -> None:
    objective = RegionObjective(WIDTH)
    tower: Any = nn.Identity()
    with pytest.raises(ValueError, match="expected a RegionEncoder, got Identity"):
        objective(Encode(tower, Layout([])), TowerBatch([], Layout([]), [], []))
