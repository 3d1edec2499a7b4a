"""The image encoder: its grid, batch = single, and the geometry of its processor."""

import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_model_data_config

from encoders.vision import ImageProcessor, TimmEncoder, grid_positions
from layers.geometry import GeometricTransform
from layers.layout import Layout

NARROW = {"channels": [16, 16, 32, 32], "stem_width": 8}


@pytest.fixture(scope="module")
def encoder() -> TimmEncoder:
    torch.manual_seed(0)
    return TimmEncoder("resnet10t", hidden_size=24, model_args=NARROW, norm_groups=2).eval()


def _raster(width: int, height: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def test_items_do_not_influence_each_other(encoder: TimmEncoder) -> None:
    items, layouts = zip(*[encoder.processor(_raster(64, 64, seed)) for seed in range(3)], strict=True)
    for training in (False, True):
        encoder.train(training)
        together = Layout(layouts).split(encoder(encoder.collate(items), Layout(layouts)))
        for item, layout, features in zip(items, layouts, together, strict=True):
            alone = encoder(encoder.collate([item]), Layout([layout]))
            torch.testing.assert_close(features, alone, atol=2e-5, rtol=1e-5)
    encoder.eval()


def test_features_are_rows_of_the_grid(encoder: TimmEncoder) -> None:
    """A mark in one corner changes that corner's feature most: rows before columns, top left first."""
    blank = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    marked = blank.clone()
    marked[:, 2:6, 50:62] = 255  # top right
    outputs = []
    for raster in (blank, marked):
        item, layout = encoder.processor(raster)
        assert layout.grid == (16, 16)
        outputs.append(encoder(encoder.collate([item]), Layout([layout])))
    row, column = divmod(int((outputs[1] - outputs[0]).norm(dim=1).argmax()), 16)
    assert row <= 3 and column >= 11


def test_batch_statistics_are_never_used() -> None:
    encoder = TimmEncoder("resnet10t", hidden_size=8, model_args=NARROW).train()
    item, layout = encoder.processor(_raster(64, 64))
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    encoder(encoder.collate([item, item]), Layout([layout, layout]))
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())


@pytest.mark.parametrize("mode", ["resize", "letterbox", "center_crop"])
def test_processor_and_transform_agree(mode: str) -> None:
    """A bright box lands, as the transform says, in the input frame."""
    processor = ImageProcessor((64, 48), (12, 16), mode=mode)
    raster = torch.zeros(3, 60, 100, dtype=torch.uint8)
    raster[:, 20:40, 30:70] = 255
    item, layout = processor(raster)
    assert layout == processor.layout((100, 60))
    assert item["pixel_values"].shape == (3, 48, 64)
    assert item["pixel_values"].dtype == torch.uint8
    bright = (item["pixel_values"][0] > 140).nonzero()
    found = torch.tensor([*bright.min(0).values.flip(0), *(bright.max(0).values + 1).flip(0)])
    expected = layout.transform.apply_boxes([(30.0, 20.0, 70.0, 40.0)])[0]
    assert (found - expected).abs().max() <= 1.0


def test_processor_is_picklable_and_refuses_what_is_not_a_raster(encoder: TimmEncoder) -> None:
    assert pickle.loads(pickle.dumps(encoder.processor)) == encoder.processor
    for wrong in (torch.zeros(3, 8, 8), torch.zeros(8, 8, dtype=torch.uint8), [1]):
        with pytest.raises(ValueError, match=r"expected an image as a \(3, H, W\) uint8 tensor"):
            encoder.processor(wrong)
    with pytest.raises(ValueError, match=r"\(width, height\)"):
        encoder.processor.layout((0, 4))


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 2]}),
        ("vit_tiny_patch16_224", {"img_size": 64, "patch_size": 8, "embed_dim": 24, "num_heads": 2, "depth": 2}),
    ],
)
def test_transformer_backbones(name: str, arguments: dict) -> None:
    encoder = TimmEncoder(name, stride=8, hidden_size=8, out_indices=(0, 1), model_args=arguments)
    item, layout = encoder.processor(_raster(64, 64))
    assert encoder(encoder.collate([item]), Layout([layout])).shape == (64, 8)


def test_checkpoint_is_loaded_from_safetensors(tmp_path) -> None:
    base = timm.create_model("resnet10t", channels=tuple(NARROW["channels"]), stem_width=8)
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    encoder = TimmEncoder("resnet10t", hidden_size=8, model_args=NARROW, checkpoint=str(tmp_path / "base.safetensors"))
    assert torch.equal(encoder.backbone.state_dict()["layer1.0.conv1.weight"], base.layer1[0].conv1.weight)
    with pytest.raises(ValueError, match=r"expected a safetensors file, got .weights\.pth"):
        TimmEncoder("resnet10t", checkpoint="weights.pth")


def test_stride_must_divide_the_input() -> None:
    with pytest.raises(ValueError, match="stride 6 does not divide"):
        TimmEncoder("resnet10t", stride=6)


def test_positions_are_symmetric() -> None:
    positions = grid_positions(4, 6)
    assert positions.shape == (4, 6, 18)
    torch.testing.assert_close(positions[..., :2], -positions.flip(0, 1)[..., :2])
    assert positions[0, -1, 0] > 0 > positions[0, -1, 1]  # x grows to the right, y downwards


def test_pixels_travel_as_bytes_and_are_normalised_once(encoder: TimmEncoder) -> None:
    raster = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    item, _ = encoder.processor(raster)
    assert torch.equal(item["pixel_values"], raster)
    data = resolve_model_data_config(encoder.backbone)
    mean, std = (torch.tensor(data[name])[:, None, None] for name in ("mean", "std"))
    assert torch.equal(encoder.normalise(raster), (raster.float() / 255 - mean) / std)
    padded = ImageProcessor((64, 48), (12, 16), mode="letterbox", mean=(0.2, 0.4, 0.6))
    assert padded(raster)[0]["pixel_values"][:, 0, 0].tolist() == [51, 102, 153]


@pytest.mark.parametrize("size", [(300, 200), (31, 77)])
def test_resizing_bytes_equals_resizing_floats_up_to_rounding(size: tuple[int, int]) -> None:
    transform = GeometricTransform.resize(size, (64, 48))
    raster = torch.randint(0, 256, (3, size[1], size[0]), dtype=torch.uint8)
    difference = transform.apply_image(raster).float() - transform.apply_image(raster.float())
    assert difference.abs().max() <= 1
