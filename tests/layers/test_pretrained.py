"""Weights that are not what they should be: other architectures, cut files, pickles that act, names nobody knows."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from encoders.graph.sentences import SentenceEncoder
from encoders.speech import SpeechEncoder
from encoders.vision import TimmEncoder, TimmTower, TransformersEncoder
from layers.pretrained import architecture, read_safetensors
from models.language import LanguageModel

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
VIT = SMALL | {"image_size": 32, "patch_size": 8}
LLAMA = SMALL | {"vocab_size": 61, "num_key_value_heads": 2, "pad_token_id": None}
WHISPER = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "vocab_size": 61}
WHISPER |= {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 24, "max_source_positions": 50}
WHISPER |= {"num_mel_bins": 8, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
WAVLM = SMALL | {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}


def save(kind: str, directory: Path) -> Callable[[], Any]:
    """Save a tiny model with transformers itself; returns what loads it here."""
    torch.manual_seed(0)
    where = str(directory)
    if kind == "vision":
        ViTModel(ViTConfig(**VIT)).save_pretrained(directory)
        return lambda: TransformersEncoder(pretrained=where)
    if kind == "language":
        LlamaForCausalLM(LlamaConfig(**LLAMA)).save_pretrained(directory)
        return lambda: LanguageModel(pretrained=where)
    if kind == "whisper":
        WhisperForConditionalGeneration(WhisperConfig(**WHISPER)).save_pretrained(directory)
        return lambda: SpeechEncoder(where)
    if kind == "wavlm":
        WavLMModel(WavLMConfig(**WAVLM)).save_pretrained(directory)
        return lambda: SpeechEncoder(None, where)
    BertModel(BertConfig(**SMALL, vocab_size=61)).save_pretrained(directory)
    return lambda: SentenceEncoder(where)


KINDS = ("vision", "language", "whisper", "wavlm", "sentences")


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_of_another_architecture_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    load = save(kind, tmp_path)
    load()
    tensors = load_file(tmp_path / "model.safetensors")
    first, *others = sorted(name for name in tensors if "decoder" not in name and "pooler" not in name)
    other = {f"stranger.{name}": tensor for name, tensor in tensors.items()}
    save_file(other, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"expected the weights of a .*missing \d+ \[.*unexpected \d+ \['stranger\."):
        load()
    fewer = {name: tensor for name, tensor in tensors.items() if name != first}
    save_file(fewer, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing 1 \['"):
        load()
    wide = next(name for name in others if tensors[name].ndim == 2)
    save_file({**tensors, wide: torch.zeros(3, 5)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing 0 \[\], of another shape 1 \['.* \(3, 5\) for \("):
        load()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_named(kind: str, tmp_path: Path) -> None:
    load = save(kind, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"'{tmp_path}': the weights cannot be read"):
        load()
    with pytest.raises(ValueError, match=f"'{weights}': expected a whole safetensors file"):
        read_safetensors(weights)
    with pytest.raises(ValueError, match=r"nowhere\.safetensors': expected a whole safetensors file"):
        read_safetensors(tmp_path / "nowhere.safetensors")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_is_refused_and_does_nothing(kind: str, tmp_path: Path) -> None:
    load = save(kind, tmp_path / "model")
    ran = tmp_path / "ran"
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(ran)))
    with pytest.raises((OSError, ValueError), match=r"safetensors"):
        load()
    assert not ran.exists()
    pickle.loads((tmp_path / "model" / "pytorch_model.bin").read_bytes())
    assert ran.exists()  # it would have


def test_weights_for_timm(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"channels": [8, 8, 16, 16], "stem_width": 8}
    file = tmp_path / "weights.safetensors"
    save_file(TimmTower("resnet10t", model_args=arguments, image_size=64).tower.state_dict(), file)
    TimmTower("resnet10t", str(file), model_args=arguments, image_size=64)
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key|Unexpected key"):
        TimmTower("resnet10t", str(file), model_args=arguments | {"channels": [16, 16, 32, 32]}, image_size=64)
    file.write_bytes(file.read_bytes()[:-10])
    for build in (TimmTower, TimmEncoder):
        with pytest.raises(ValueError, match=f"'{file}': expected a whole safetensors file"):
            build("resnet10t", checkpoint=str(file), model_args=arguments, image_size=64)


def test_a_head_of_another_task_is_left_and_what_nobody_reads_may_lack(tmp_path: Path) -> None:
    ViTForImageClassification(ViTConfig(**VIT, num_labels=3)).save_pretrained(tmp_path)
    TransformersEncoder(pretrained=str(tmp_path))
    with pytest.raises(ValueError, match=r"missing 2 \['pooler\."):
        TransformersEncoder(pretrained=str(tmp_path), pooled=True)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: architecture("dinov22", {}), "got 'dinov22'; near: dinov2"),
        (lambda: TransformersEncoder(model_type="siglp_vision_model"), "near: siglip_vision_model"),
        (lambda: LanguageModel("lama", {}), "got 'lama'; near: .*llama"),
        (lambda: TimmEncoder("resnet10tt"), "a model of timm, got 'resnet10tt'; near: .*resnet10t"),
        (lambda: architecture("@@", {}), "got '@@'$"),
    ],
)
def test_a_name_that_does_not_exist(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    for build in (
        lambda: LanguageModel(pretrained=str(tmp_path / "none")),
        lambda: TransformersEncoder(pretrained=str(tmp_path / "none")),
        lambda: SpeechEncoder(str(tmp_path / "none")),
    ):
        with pytest.raises(OSError, match="none"):
            build()


def test_a_config_says_another_size_than_the_weights(tmp_path: Path) -> None:
    load = save("language", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 70}))
    with pytest.raises(ValueError, match=r"of another shape \d .*embed_tokens.weight \(61, 16\) for \(70, 16\)"):
        load()
