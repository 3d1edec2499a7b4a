"""Every encoder with every projector that takes its grids: as many tokens as data workers predict, of any media."""

from __future__ import annotations

import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.graph import GraphGPTEncoder, GraphTransformerEncoder, MessagePassingEncoder
from encoders.qwen_audio import Qwen2AudioTower
from encoders.speech import SpeechEncoder
from encoders.vision import OpenClipEncoder, RegionEncoder, TimmEncoder, TimmTower, TransformersEncoder
from layers.encoder import Encoder
from layers.layout import Layout
from layers.media import Audio, Graph
from models import projectors
from models.class_paths import ALLOWED_CLASSES
from models.projectors import Projector

OUTPUT = 24
VIT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
VIT |= {"image_size": 32, "patch_size": 8}
WHISPER = {"d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 8, "num_mel_bins": 8}
WHISPER |= {"max_source_positions": 50}
DETECTOR: dict[str, Any] = {
    "backbone_config": {"model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [1] * 4, "window_size": 4}
    | {"num_heads": [1, 2, 4, 8], "out_features": ["stage1", "stage2", "stage3", "stage4"]},
    **{"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 32},
    **{"dim_feedforward": 32, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 4, "num_queries": 5},
}
BUILDERS: dict[str, Any] = {
    "timm pyramid": lambda: TimmEncoder(
        "resnet10t", 32, hidden_size=16, model_args={"channels": [8, 8, 16, 16], "stem_width": 8}, norm_groups=2
    ),
    "timm": lambda: TimmTower(
        "vit_tiny_patch16_224",
        image_size=32,
        model_args={"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8},
    ),
    "open_clip": lambda: OpenClipEncoder("tiny-for-pairs"),
    "transformers": lambda: TransformersEncoder(model_type="vit", config=VIT),
    "transformers native": lambda: TransformersEncoder(
        model_type="siglip_vision_model", config=VIT, image_size="native", max_patches=20
    ),
    "transformers tiles": lambda: TransformersEncoder(model_type="vit", config=VIT, tiles=[[1, 2], [2, 1], [3, 3]]),
    "regions": lambda: RegionEncoder(config=DETECTOR, image_size=64, num_regions=3, level=1),
    "whisper": lambda: SpeechEncoder(WHISPER),
    "qwen2 audio": lambda: Qwen2AudioTower(config=WHISPER),
    "graph transformer": lambda: GraphTransformerEncoder(16, 1, 2, text_width=8),
    "sage": lambda: MessagePassingEncoder("sage", 16, 1, 2, text_width=8),
    "graphgpt": lambda: GraphGPTEncoder(4, 8, 16, 1, 2),
}
SIZES: dict[str, list[tuple[int, ...]]] = {
    "image": [(1, 1), (40, 24), (300, 1), (2, 90), (64, 64)],
    "audio": [(1,), (321,), (16_001,), (40_000,)],
    "graph": [(1,), (2,), (7,)],
}
AXES = {"PixelShuffleProjector": 2, "ConvProjector": 2, "AnyresProjector": 2, "FrameStackProjector": 1}
AXES |= {"ConvGLUProjector": 1}
SMALL: dict[str, dict[str, Any]] = {
    "ConvGLUProjector": {"channels": [[16, 24]], "bottleneck": 6},
    "PerceiverResampler": {"num_queries": 5, "num_heads": 4, "num_layers": 1},
    "QFormerProjector": {"hidden_size": 16, "num_heads": 4, "num_layers": 1, "num_queries": 2, "window": 3},
}


def projector_classes() -> list[type[Projector]]:
    found = [value for value in vars(projectors).values() if inspect.isclass(value) and issubclass(value, Projector)]
    return [value for value in found if not inspect.isabstract(value)]


def projector(kind: type[Projector], width: int) -> Projector:
    if kind is projectors.TimedProjector:
        return projectors.TimedProjector(projectors.MLPProjector(width, OUTPUT), OUTPUT)
    if kind is projectors.RegionProjector:
        return projectors.RegionProjector(projectors.PoolProjector(width, OUTPUT), width, OUTPUT)
    return kind(width, OUTPUT, **SMALL.get(kind.__name__, {}))  # type: ignore[call-arg]


def medium(kind: str, size: tuple[int, ...], features: int) -> Any:
    generator = torch.Generator().manual_seed(sum(size))
    if kind == "image":
        return torch.randint(0, 256, (3, size[1], size[0]), dtype=torch.uint8, generator=generator)
    if kind == "audio":
        return Audio(torch.rand(size[0], generator=generator) - 0.5, 16_000)
    edges = torch.stack([torch.arange(1, size[0]), torch.zeros(size[0] - 1, dtype=torch.int64)])
    return Graph(("node",) * size[0], edges, torch.rand(size[0], features, generator=generator))


@pytest.fixture(scope="module")
def open_clip_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    folder: Path = tmp_path_factory.mktemp("open_clip")
    (folder / "tiny-for-pairs.json").write_text(json.dumps({"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder)


def test_every_encoder_is_here(open_clip_model: None) -> None:
    listed = {path.rsplit(".", 1)[1] for path in ALLOWED_CLASSES if path.startswith("encoders.")}
    assert {type(build()).__name__ for build in BUILDERS.values()} == listed


@pytest.mark.parametrize("name", BUILDERS)
def test_tokens_are_as_many_as_predicted(name: str, open_clip_model: None) -> None:
    torch.manual_seed(0)
    encoder: Encoder = BUILDERS[name]().eval()
    processor = pickle.loads(pickle.dumps(encoder.processor))  # what a data worker has
    sizes = SIZES[encoder.kind][1 if name == "qwen2 audio" else 0 :]  # which needs two frames for its first feature
    predicted = [processor.layout(size) for size in sizes]
    items, layouts = zip(*[processor(medium(encoder.kind, size, 4)) for size in sizes], strict=True)
    assert list(layouts) == predicted
    layout = Layout(layouts)
    with torch.no_grad():
        features = encoder(encoder.collate(items), layout)
    assert features.shape == (layout.total, encoder.hidden_size) and features.isfinite().all()
    paired = 0
    for kind in projector_classes():
        if AXES.get(kind.__name__, len(predicted[0].grid)) != len(predicted[0].grid):
            continue
        made = projector(kind, encoder.hidden_size).eval()
        rule = pickle.loads(pickle.dumps(made.token_rule))
        with torch.no_grad():
            try:
                tokens, projected = made(features, layout)
            except ValueError as error:  # only a RegionProjector and what reads features one by one take regions
                assert name == "regions" and "put a RegionProjector around" in str(error)
                continue
        counts = [rule.num_tokens(item) for item in predicted]
        assert tokens.shape == (sum(counts), OUTPUT) and list(projected.lengths) == counts, kind.__name__
        assert tokens.isfinite().all() and min(counts) >= 1
        paired += 1
    assert paired >= (4 if name == "regions" else 6)
