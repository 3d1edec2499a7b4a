"""Towers of other libraries: their own features to the last digit, for any layer, size and shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import AutoModel, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPVisionModel

from encoders.vision import NativeProcessor, OpenClipEncoder, TimmTower, TransformersEncoder, VisionTower
from layers.layout import Layout

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
# architecture -> (configuration, tokens before the patches)
TRANSFORMERS: dict[str, tuple[dict[str, Any], int]] = {
    "clip_vision_model": (SMALL | {"image_size": 32, "patch_size": 8}, 1),
    "siglip_vision_model": (SMALL | {"image_size": 32, "patch_size": 8}, 0),
    "vit": (SMALL | {"image_size": 32, "patch_size": 8}, 1),
    "dinov2": (SMALL | {"image_size": 32, "patch_size": 8}, 1),
    "dinov2_with_registers": (SMALL | {"image_size": 32, "patch_size": 8, "num_register_tokens": 3}, 4),
    "dinov3_vit": (SMALL | {"image_size": 32, "patch_size": 8, "num_register_tokens": 2}, 3),
}
WINDOWED = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4}


def raster(width: int, height: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def built(model_type: str, **arguments: Any) -> TransformersEncoder:
    torch.manual_seed(0)
    config = WINDOWED if model_type.startswith("swin") else TRANSFORMERS[model_type][0]
    return TransformersEncoder(model_type=model_type, config=config, **arguments).eval()


def encoded(tower: VisionTower, *rasters: torch.Tensor) -> tuple[torch.Tensor, ...]:
    items, layouts = zip(*[tower.processor(item) for item in rasters], strict=True)
    layout = Layout(layouts)
    with torch.no_grad():
        return layout.split(tower(tower.collate(items), layout))


@pytest.mark.parametrize("model_type", TRANSFORMERS)
@pytest.mark.parametrize("layers", [None, [-2], [1, -1]])
def test_features_are_those_of_the_library(model_type: str, layers: list[int] | None) -> None:
    tower = built(model_type, layers=layers, resize_mode="resize")
    image, prefix = raster(32, 32), TRANSFORMERS[model_type][1]
    (found,) = encoded(tower, image)
    pixels = (image.float() / 255 - tower.normalise.mean) / tower.normalise.std
    with torch.no_grad():
        output = tower.tower(pixels[None], output_hidden_states=True)
    wanted = [output.last_hidden_state] if layers is None else [output.hidden_states[index] for index in layers]
    torch.testing.assert_close(found, torch.cat([item[0, prefix:] for item in wanted], dim=-1), atol=1e-6, rtol=1e-5)
    assert tower.processor.layout((32, 32)).grid == (4, 4) and tower.hidden_size == found.shape[1]


@pytest.mark.parametrize("model_type", ["swin", "swinv2"])
def test_stages_of_windowed_towers_stand_on_the_finest_grid(model_type: str) -> None:
    tower = built(model_type, layers=[0, 1], resize_mode="resize")
    (found,) = encoded(tower, raster(32, 32))
    pixels = tower.normalise(raster(32, 32))[None]
    with torch.no_grad():
        maps = tower.tower(pixels, output_hidden_states=True).reshaped_hidden_states
    assert tower.processor.layout((32, 32)).grid == tuple(maps[0].shape[-2:]) == (16, 16)
    torch.testing.assert_close(found[:, :8], maps[0][0].flatten(1).T)
    last = built(model_type, resize_mode="resize")
    with torch.no_grad():
        expected = last.tower(pixels).last_hidden_state[0]
    torch.testing.assert_close(encoded(last, raster(32, 32))[0], expected)


def test_a_convolutional_tower_of_transformers() -> None:
    config = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
    torch.manual_seed(0)
    tower = TransformersEncoder(model_type="dinov3_convnext", config=config, layers=[-1], image_size=64).eval()
    (found,) = encoded(tower, raster(64, 64))
    assert tower.processor.layout((64, 64)).grid == (2, 2) and found.shape == (4, 16)


@pytest.mark.parametrize("model_type", [*TRANSFORMERS, "swin"])
def test_images_do_not_influence_each_other(model_type: str) -> None:
    tower = built(model_type)
    images = [raster(40, 30, seed) for seed in range(3)]
    for image, features in zip(images, encoded(tower, *images), strict=True):
        torch.testing.assert_close(features, encoded(tower, image)[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["clip_vision_model", "siglip_vision_model", "dinov2", "dinov3_vit"])
def test_images_of_their_own_size_and_shape(model_type: str) -> None:
    tower = built(model_type, image_size="native", max_patches=20)
    images = [raster(32, 32), raster(64, 16), raster(300, 40), raster(32, 32, 1), raster(1, 1)]
    together = encoded(tower, *images)
    grids = [tower.processor.layout((image.shape[2], image.shape[1])).grid for image in images]
    assert grids[0] == (4, 4) and grids[1] == (2, 8) and all(rows * columns <= 20 for rows, columns in grids)
    for image, features, (rows, columns) in zip(images, together, grids, strict=True):
        assert features.shape == (rows * columns, tower.hidden_size)
        torch.testing.assert_close(features, encoded(tower, image)[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(together[0], encoded(built(model_type, resize_mode="resize"), images[0])[0])


def test_native_sizes_keep_the_shape_within_the_budget() -> None:
    processor = NativeProcessor(patch_size=14, min_patches=16, max_patches=256)
    for width, height in [(640, 480), (10_000, 20), (3, 5000), (1, 1), (224, 224), (900, 901)]:
        layout = processor.layout((width, height))
        rows, columns = layout.grid
        assert 1 <= rows * columns <= 256 and layout.transform is not None
        assert layout.transform.input_size == (columns * 14, rows * 14)
        if 0.2 < width / height < 5 and width * height > 256 * 14**2:
            assert columns / rows == pytest.approx(width / height, rel=0.12) and rows * columns > 200


def saved_clip(directory: Path) -> CLIPModel:
    torch.manual_seed(0)
    text = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    vision = TRANSFORMERS["clip_vision_model"][0]
    config = CLIPConfig(
        text_config=text | {"num_attention_heads": 2}, vision_config=vision, projection_dim=8, hidden_act="gelu"
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(directory)
    size = {"shortest_edge": 32}
    CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(directory)
    return model


@pytest.mark.parametrize("size", [(32, 32), (47, 33), (33, 64), (20, 100)])
def test_a_saved_clip_gives_its_own_pixels_and_features(tmp_path: Path, size: tuple[int, int]) -> None:
    saved_clip(tmp_path)
    tower = TransformersEncoder(pretrained=str(tmp_path), layers=[-2]).eval()
    image = raster(*size)
    theirs = CLIPVisionModel.from_pretrained(tmp_path).eval()
    pixels = CLIPImageProcessor.from_pretrained(tmp_path)(images=image, return_tensors="pt")["pixel_values"]
    ours, _ = tower.processor(image)
    torch.testing.assert_close(tower.normalise(ours["pixel_values"]), pixels[0], atol=1e-5, rtol=0)
    with torch.no_grad():
        expected = theirs(pixels, output_hidden_states=True).hidden_states[-2][0, 1:]
    torch.testing.assert_close(encoded(tower, image)[0], expected, atol=1e-5, rtol=1e-4)


def test_one_feature_per_image(tmp_path: Path) -> None:
    saved_clip(tmp_path)
    tower = TransformersEncoder(pretrained=str(tmp_path), pooled=True).eval()
    assert tower.processor.layout((32, 32)).grid == (1, 1)
    pixels = tower.normalise(tower.processor(raster(32, 32))[0]["pixel_values"])[None]
    with torch.no_grad():
        expected = AutoModel.from_pretrained(tmp_path).vision_model(pixels).pooler_output
    torch.testing.assert_close(encoded(tower, raster(32, 32))[0], expected)


@pytest.fixture
def tiny_open_clip(tmp_path: Path) -> str:
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 3, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    (tmp_path / "tiny-for-tests.json").write_text(json.dumps({"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(tmp_path)
    return "tiny-for-tests"


def test_an_open_clip_tower(tiny_open_clip: str, tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(tiny_open_clip)
    model.eval()
    file = tmp_path / "model.safetensors"
    save_file(model.state_dict(), file)
    image = raster(50, 40)
    from PIL import Image

    pixels = preprocess(Image.fromarray(image.permute(1, 2, 0).numpy()))[None]
    tower = OpenClipEncoder(tiny_open_clip, str(file), layers=[0, -1]).eval()
    ours = tower.normalise(tower.processor(image)[0]["pixel_values"])
    assert (ours - pixels[0]).abs().max() < 2.1 / 255 / 0.26  # PIL's bicubic rounds twice
    with torch.no_grad():
        maps = model.visual.forward_intermediates(ours[None], [0, 2], intermediates_only=True)["image_intermediates"]
    expected = torch.cat([item[0].flatten(1).T for item in maps], dim=1)
    torch.testing.assert_close(encoded(tower, image)[0], expected)
    pooled = OpenClipEncoder(tiny_open_clip, str(file), pooled=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(encoded(pooled, image)[0], model.encode_image(ours[None]))
    assert not [name for name, _ in tower.named_parameters() if "token_embedding" in name]


@pytest.mark.parametrize(
    ("name", "arguments", "size", "grid"),
    [
        ("vit_tiny_patch16_224", {"embed_dim": 24, "depth": 3, "num_heads": 2, "patch_size": 8}, 32, (4, 4)),
        ("resnet10t", {"channels": [16, 16, 32, 32], "stem_width": 8}, 64, (2, 2)),
        ("convnext_atto", {"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}, 64, (2, 2)),
    ],
)
def test_a_timm_network_as_it_is(
    tmp_path: Path, name: str, arguments: dict[str, Any], size: int, grid: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    sized = arguments | ({"img_size": size} if name.startswith("vit") else {})
    network = timm.create_model(name, num_classes=0, **sized).eval()
    file = tmp_path / "network.safetensors"
    save_file(network.state_dict(), file)
    tower = TimmTower(name, str(file), image_size=size, model_args=arguments).eval()
    image = raster(size + 9, size)
    pixels = tower.normalise(tower.processor(image)[0]["pixel_values"])[None]
    with torch.no_grad():
        (maps,) = network.forward_intermediates(pixels, indices=[-1], intermediates_only=True, norm=False)
        vector = network(pixels)
    assert tower.processor.layout((size, size)).grid == grid
    torch.testing.assert_close(encoded(tower, image)[0], maps[0].flatten(1).T)
    pooled = TimmTower(name, str(file), pooled=True, image_size=size, model_args=arguments).eval()
    torch.testing.assert_close(encoded(pooled, image)[0], vector)


def test_what_cannot_be_built(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got 'vit_tny_patch16_224'; near: vit_tiny_patch16_224"):
        TimmTower("vit_tny_patch16_224")
    with pytest.raises(ValueError, match=r"got 'ViT-B-17'; near: .*ViT-B-16"):
        OpenClipEncoder("ViT-B-17")
    with pytest.raises(ValueError, match="expected a safetensors file, got"):
        TimmTower("resnet10t", str(tmp_path / "weights.pth"))
    with pytest.raises(ValueError, match="pretrained or model_type, got None and None"):
        TransformersEncoder()
    with pytest.raises(ValueError, match=r"indices from -4 to 3 of 'vit', got \[7\]"):
        built("vit", layers=[7])
    with pytest.raises(ValueError, match="a vision tower, got 'llama'"):
        TransformersEncoder(model_type="llama", config={"hidden_size": 16, "num_attention_heads": 2})
    with pytest.raises(ValueError, match="no patches of one size, got None"):
        built("swin", image_size="native")
    with pytest.raises(ValueError, match="'native' or None, got 'large'"):
        built("vit", image_size="large")


def test_frozen_statistics_stay_as_they_are() -> None:
    tower = TimmTower("resnet10t", image_size=64, model_args={"channels": [16, 16, 32, 32], "stem_width": 8}).train()
    before = {name: value.clone() for name, value in tower.named_buffers()}
    encoded(tower, raster(64, 64))
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(value, before[name]) for name, value in tower.named_buffers())
    assert np.isfinite(encoded(tower, raster(64, 64))[0].numpy()).all()
