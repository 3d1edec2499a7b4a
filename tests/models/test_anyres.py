"""Images in tiles against LLaVA-NeXT and LLaVA-OneVision of transformers: the same pixels, tokens and lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextModel,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionModel,
)

from encoders.vision import TiledProcessor, TransformersEncoder
from layers.layout import ItemLayout, Layout
from models.projectors import AnyresProjector, AnyresRule

SIDE, PATCH = 24, 4
PINPOINTS = [[24, 48], [48, 24], [48, 48], [72, 24], [24, 72]]
SIZES = [(24, 24), (50, 30), (31, 77), (200, 24), (20, 300), (3, 2), (73, 71)]
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION |= {"image_size": SIDE, "patch_size": PATCH}
TEXT = {"model_type": "llama", "hidden_size": 20, "intermediate_size": 24, "num_hidden_layers": 1}
TEXT |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 40}


def oracle(kind: str, max_tiles: int) -> tuple[Any, Any]:
    """A tiny model of transformers with random weights, and its image processor."""
    torch.manual_seed(0)
    size = {"height": SIDE, "width": SIDE}
    if kind == "next":
        vision = VISION | {"model_type": "clip_vision_model", "projection_dim": 8}
        config: Any = LlavaNextConfig(vision_config=vision, text_config=TEXT, image_grid_pinpoints=PINPOINTS)
        processor: Any = LlavaNextImageProcessor(
            size={"shortest_edge": SIDE}, crop_size=size, image_grid_pinpoints=PINPOINTS
        )
        return LlavaNextModel(config).eval(), processor
    vision = VISION | {"model_type": "siglip_vision_model"}
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=TEXT,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=f"anyres_max_{max_tiles}",
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    return LlavaOnevisionModel(config).eval(), LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=PINPOINTS)


def ours(kind: str, model: Any, max_tiles: int, directory: Path) -> tuple[TransformersEncoder, AnyresProjector]:
    model.vision_tower.save_pretrained(directory)
    layers = [-2] if kind == "next" else [-1]
    tiles = [[height // SIDE, width // SIDE] for height, width in PINPOINTS]
    encoder = TransformersEncoder(pretrained=str(directory), layers=layers, tiles=tiles).eval()
    projector = AnyresProjector(16, 20, norms=False, max_tiles=max_tiles if kind == "onevision" else None)
    theirs = model.multi_modal_projector
    weights = {f"0.{name}": value for name, value in theirs.linear_1.state_dict().items()}
    weights |= {f"2.{name}": value for name, value in theirs.linear_2.state_dict().items()}
    projector.layers.load_state_dict(weights)
    projector.newline.data = model.image_newline.data.clone()
    return encoder, projector


@pytest.mark.parametrize(("kind", "max_tiles"), [("next", 0), ("onevision", 9), ("onevision", 2)])
def test_pixels_and_tokens_are_those_of_transformers(tmp_path: Path, kind: str, max_tiles: int) -> None:
    model, processor = oracle(kind, max_tiles)
    encoder, projector = ours(kind, model, max_tiles, tmp_path)
    generator = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for w, h in SIZES]
    items, layouts = zip(*[encoder.processor(image) for image in images], strict=True)
    mean, std = torch.tensor(processor.image_mean)[:, None, None], torch.tensor(processor.image_std)[:, None, None]
    expected: list[torch.Tensor] = []
    for image, item in zip(images, items, strict=True):
        theirs = processor(images=image, return_tensors="pt")
        pixels = (item["pixel_values"].float() / 255 - mean) / std
        torch.testing.assert_close(pixels, theirs["pixel_values"][0], atol=1e-5, rtol=0)
        encoder.normalise.mean, encoder.normalise.std = mean, std
        with torch.no_grad():
            output = model.get_image_features(theirs["pixel_values"], theirs["image_sizes"])
        expected.append(output.pooler_output[0])
    layout = Layout(layouts)
    with torch.no_grad():
        tokens, projected = projector(encoder(encoder.collate(items), layout), layout)
    assert projected.lengths == tuple(len(item) for item in expected)
    torch.testing.assert_close(tokens, torch.cat(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("max_tiles", [None, 2, 9])
def test_the_rule_knows_every_length(max_tiles: int | None) -> None:
    rule = AnyresRule(max_tiles=max_tiles, single_newline=True)
    processor = TiledProcessor((SIDE, SIDE), (6, 6))
    projector = AnyresProjector(4, 4, max_tiles=max_tiles)
    generator = torch.Generator().manual_seed(0)
    for width, height in torch.randint(1, 400, (60, 2), generator=generator).tolist():
        layout = Layout([processor.layout((width, height))])
        tokens, projected = projector(torch.randn(layout.total, 4), layout)
        assert len(tokens) == projected.total == rule.num_tokens(layout.items[0])


def test_tiles_are_put_together_in_their_places() -> None:
    """Every cell of the tiles carries its own place; what comes out must be the places row by row."""
    projector = AnyresProjector(2, 2, num_layers=1, norms=False, single_newline=False)
    projector.layers[0].weight.data, projector.layers[0].bias.data = torch.eye(2), torch.zeros(2)
    item = ItemLayout((2, 3), (90, 40), tiles=(2, 2))
    whole = torch.full((6, 2), -1.0)
    places = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij"), dim=-1)
    tiles = places.unflatten(1, (2, 3)).unflatten(0, (2, 2)).transpose(1, 2).flatten(0, 3)
    tokens, _ = projector(torch.cat([whole, tiles]), Layout([item]))
    across, along = projector.token_rule.unpadded(item)
    grid = tokens[6:].unflatten(0, (across.stop - across.start, -1))[:, :-1]
    assert torch.equal(grid, places[across, along])
    assert torch.equal(tokens[:6], whole)
