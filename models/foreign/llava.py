"""LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision directories of transformers, to ours and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
)

from models.checkpoint import CheckpointError
from models.foreign.conversion import (
    Conversion,
    copy_files,
    language_model_config,
    load_their_tokenizer,
    prefixed,
    settings_of,
)
from models.generalist import Generalist

CLASSES: dict[str, type[PreTrainedModel]] = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
    "llava_onevision": LlavaOnevisionForConditionalGeneration,
}
# What their processors' templates write around a turn; ours puts the media's tokens at the place of the parts.
VICUNA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}"
    "{% else %}{{ message['content'] + ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_OWN_TEMPLATE = {"llava_onevision"}  # their language models' chat templates are ChatML already


def load(source: str) -> Conversion:
    """Read a directory with safetensors; nothing in it is executed.

    Raises:
        CheckpointError: If it is no such model, or uses what cannot be expressed, naming it.
    """
    config = _config(source)
    try:
        model = CLASSES[config.model_type].from_pretrained(
            source, use_safetensors=True, trust_remote_code=False, dtype="auto"
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"'{source}': the weights cannot be read: {error}") from None
    own: Any = model.model
    tensors = prefixed("language_model.model.model.", own.language_model)
    tensors |= prefixed("language_model.model.lm_head.", model.lm_head)
    tensors |= prefixed("encoders.image.tower.", own.vision_tower)
    tensors |= _projector_tensors(own)
    tokenizer = load_their_tokenizer(source, None if config.model_type in _OWN_TEMPLATE else VICUNA)
    return Conversion(_our_config(config, _preprocessing(source)), tensors, tokenizer)


def export(generalist: Generalist, source: str, out: str | Path) -> None:
    """Write a converted model in transformers' format again.

    Args:
        generalist: The model.
        source: The directory that it was converted from: architecture, tokenizer and processor are taken from there.
        out: The directory.

    Raises:
        CheckpointError: If the model has parts that the architecture has no place for.
    """
    config = _config(source)
    extra = sorted(set(generalist.encoders) - {"image"}) + sorted(generalist.heads)
    if extra:
        raise CheckpointError(f"export to '{config.model_type}': expected an image encoder and no heads, got {extra}")
    tensors: dict[str, Tensor] = {}
    language_model = generalist.language_model.model
    tensors |= prefixed("model.language_model.", language_model.base_model)
    tensors |= {"lm_head.weight": generalist.language_model.head_weight.detach()}
    tensors |= prefixed("model.vision_tower.", _tower(generalist))
    projector: Any = generalist.projectors["image"]
    for ours, theirs in (("0", "linear_1"), ("2", "linear_2")):
        tensors |= prefixed(f"model.multi_modal_projector.{theirs}.", projector.layers[int(ours)])
    if hasattr(projector, "newline"):
        tensors["model.image_newline"] = projector.newline.detach()
    model = CLASSES[config.model_type](config)
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    missing = [name for name in missing if not (name == "lm_head.weight" and config.tie_word_embeddings)]
    if missing or unexpected:
        raise CheckpointError(f"export to '{config.model_type}': missing {missing[:5]}, unexpected {unexpected[:5]}")
    model.save_pretrained(str(out))
    load_their_tokenizer(source, "{{ '' }}").save_pretrained(str(out))
    copy_files(source, out)


def _tower(generalist: Generalist) -> nn.Module:
    tower: Any = generalist.encoders["image"]
    module: nn.Module = tower.tower
    return module


def _config(source: str) -> PretrainedConfig:
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{source}': expected a model directory of transformers: {error}") from None
    if config.model_type not in CLASSES:
        raise CheckpointError(f"'{source}': expected one of {sorted(CLASSES)}, got '{config.model_type}'")
    wanted: Mapping[str, Any] = {"projector_hidden_act": "gelu", "multimodal_projector_bias": True}
    for name, value in wanted.items():
        if getattr(config, name, value) != value:
            raise CheckpointError(f"'{source}': expected {name} {value!r}, got {getattr(config, name)!r}")
    if config.vision_feature_select_strategy == "full" and config.vision_config.model_type.startswith("clip"):
        raise CheckpointError(f"'{source}': expected the class token to be left out, got vision_feature 'full'")
    return config


def _our_config(config: PretrainedConfig, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    layers = config.vision_feature_layer
    encoder: dict[str, Any] = {
        "model_type": config.vision_config.model_type,
        "config": settings_of(config.vision_config),
        "layers": [layers] if isinstance(layers, int) else list(layers),
        **preprocessing,
    }
    text, width = config.text_config, config.vision_config.hidden_size
    projector: dict[str, Any] = {
        "input_size": width * len(encoder["layers"]),
        "output_size": text.hidden_size,
        "norms": False,
    }
    kind = "MLPProjector"
    if config.model_type != "llava":
        side = config.vision_config.image_size
        encoder["tiles"] = [[height // side, width // side] for height, width in config.image_grid_pinpoints]
        kind = "AnyresProjector"
    if config.model_type == "llava_onevision":
        projector["max_tiles"] = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        encoder["tiles_alone_only"] = True
    return {
        "language_model": language_model_config(text),
        "encoders": {"image": {"class_path": "encoders.vision.TransformersEncoder", "init_args": encoder}},
        "projectors": {"image": {"class_path": f"models.projectors.{kind}", "init_args": projector}},
        "heads": {},
    }


def _projector_tensors(model: Any) -> dict[str, Tensor]:
    tensors = prefixed("projectors.image.layers.0.", model.multi_modal_projector.linear_1)
    tensors |= prefixed("projectors.image.layers.2.", model.multi_modal_projector.linear_2)
    if getattr(model, "image_newline", None) is not None:
        tensors["projectors.image.newline"] = model.image_newline.detach()
    return tensors


def _preprocessing(source: str) -> dict[str, Any]:
    """Mean, deviation and resampling of their image processor, where it says them."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        file = Path(source, name)
        if file.is_file():
            told = json.loads(file.read_text())
            told = told.get("image_processor", told)
            if "image_mean" in told:
                resample = {2: "bilinear", 3: "bicubic"}.get(told.get("resample", 3), "bicubic")
                return {"mean": told["image_mean"], "std": told["image_std"], "resample": resample}
    return {}
