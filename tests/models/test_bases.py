"""What was loaded from elsewhere and did not change is named in a checkpoint, not stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperModel,
)

from models.build import build_generalist
from models.checkpoint import WEIGHTS, CheckpointError, load_checkpoint, save_checkpoint
from models.generalist import Generalist
from tests.encoders.test_speech import WAVLM, WHISPER
from tests.tiny import CONFIG, tiny_tokenizer

BASES = {
    "language_model.model.": "llama",
    "encoders.image.tower.": "clip",
    "encoders.audio.whisper.encoder.": "whisper",
    "encoders.audio.wavlm.model.": "wavlm",
}


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """A model whose language model and encoders come from directories of transformers."""
    torch.manual_seed(0)
    clip = CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    clip.image_size, clip.patch_size = 32, 8
    models: dict[str, Any] = {
        "llama": LlamaForCausalLM(LlamaConfig(**CONFIG["language_model"]["config"])),
        "clip": CLIPVisionModel(clip),
        "whisper": WhisperModel(WhisperConfig(**WHISPER)),
        "wavlm": WavLMModel(WavLMConfig(**WAVLM)),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    encoders = {
        "image": {
            "class_path": "encoders.vision.TransformersEncoder",
            "init_args": {"pretrained": str(tmp_path / "clip")},
        },
        "audio": {
            "class_path": "encoders.speech.SpeechEncoder",
            "init_args": {name: str(tmp_path / name) for name in ("whisper", "wavlm")},
        },
    }
    sizes = {"image": 16, "audio": 32}
    projectors = {
        kind: {"class_path": "models.projectors.MLPProjector", "init_args": {"input_size": size, "output_size": 32}}
        for kind, size in sizes.items()
    }
    return {
        "tokenizer": tiny_tokenizer(tmp_path),
        "tasks": {"tasks": []},
        "language_model": {"pretrained": str(tmp_path / "llama")},
        "encoders": encoders,
        "projectors": projectors,
        "heads": {},
    }


def stored_names(directory: Path) -> set[str]:
    with safe_open(directory / WEIGHTS, framework="pt") as file:
        return set(file.keys())


def states(model: Generalist) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if value.is_floating_point()}


def test_what_did_not_change_is_not_stored_and_returns(config: dict[str, Any], tmp_path: Path) -> None:
    model = build_generalist(config).eval()
    changed = "encoders.image.tower.vision_model.encoder.layers.0.mlp.fc1.bias"
    changed = changed if changed in model.state_dict() else changed.replace("vision_model.", "")
    with torch.no_grad():
        model.get_parameter(changed).add_(1)
        model.get_parameter("encoders.audio.wavlm.layer_logits").normal_()
    saved = save_checkpoint(model, config, tmp_path / "checkpoint")
    from_bases = {name for name in stored_names(saved) if name.startswith(tuple(BASES))}
    assert from_bases == {changed}
    assert {"encoders.audio.wavlm.layer_logits", "encoders.audio.fuse.weight"} <= stored_names(saved)
    again = load_checkpoint(saved)
    for name, value in states(model).items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize(("prefix", "folder"), BASES.items())
def test_another_base_is_refused(prefix: str, folder: str, config: dict[str, Any], tmp_path: Path) -> None:
    saved = save_checkpoint(build_generalist(config), config, tmp_path / "checkpoint")
    weights = tmp_path / folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"base of '{prefix}' at .*{folder}': expected sha256"):
        load_checkpoint(saved)
