"""LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision directories of transformers, to ours and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
)

from encoders.vision.transformers_tower import told_preprocessing
from models.checkpoint import CheckpointError
from models.foreign.conversion import (
    Conversion,
    export_model,
    language_model_config,
    language_model_tensors,
    load_their_config,
    load_their_model,
    load_their_tokenizer,
    only_parts,
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
    model = load_their_model(CLASSES[config.model_type], source)
    own: Any = model.model
    tensors = language_model_tensors(model)
    tensors |= prefixed("encoders.image.tower.", own.vision_tower)
    tensors |= _projector_tensors(own)
    tokenizer = load_their_tokenizer(source, None if config.model_type in _OWN_TEMPLATE else VICUNA)
    return Conversion(_our_config(config, told_preprocessing(source)), tensors, tokenizer)


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
    encoder, projector = only_parts(generalist, "image", config.model_type)
    tensors = prefixed("model.vision_tower.", encoder.tower)
    tensors |= prefixed("model.multi_modal_projector.linear_1.", projector.layers[0])
    tensors |= prefixed("model.multi_modal_projector.linear_2.", projector.layers[2])
    if hasattr(projector, "newline"):
        tensors["model.image_newline"] = projector.newline.detach()
    export_model(generalist, CLASSES[config.model_type], config, tensors, source, out)


def _config(source: str) -> PretrainedConfig:
    config: PretrainedConfig = load_their_config(source, CLASSES)
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
