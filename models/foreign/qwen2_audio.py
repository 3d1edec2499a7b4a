"""Qwen2-Audio directories of transformers, to ours and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

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

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def load(source: str) -> Conversion:
    """Read a directory with safetensors; nothing in it is executed.

    Raises:
        CheckpointError: If it is no such model, or its weights cannot be read.
    """
    config = _config(source)
    try:
        model = Qwen2AudioForConditionalGeneration.from_pretrained(
            source, use_safetensors=True, trust_remote_code=False, dtype="auto"
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"'{source}': the weights cannot be read: {error}") from None
    own: Any = model.model
    tensors = prefixed("language_model.model.model.", own.language_model)
    tensors |= prefixed("language_model.model.lm_head.", model.lm_head)
    tensors |= prefixed("encoders.audio.tower.", own.audio_tower)
    tensors |= prefixed("projectors.audio.layers.0.", own.multi_modal_projector.linear)
    sizes = {"input_size": config.audio_config.d_model, "output_size": config.text_config.hidden_size}
    encoder = {
        "class_path": "encoders.qwen_audio.Qwen2AudioTower",
        "init_args": {"config": settings_of(config.audio_config)},
    }
    projector = {
        "class_path": "models.projectors.MLPProjector",
        "init_args": {**sizes, "num_layers": 1, "norms": False},
    }
    ours = {
        "language_model": language_model_config(config.text_config),
        "encoders": {"audio": encoder},
        "projectors": {"audio": projector},
        "heads": {},
    }
    return Conversion(ours, tensors, load_their_tokenizer(source, CHATML))


def export(generalist: Generalist, source: str, out: str | Path) -> None:
    """Write a converted model in transformers' format again; arguments and errors as for LLaVA."""
    config = _config(source)
    extra = sorted(set(generalist.encoders) - {"audio"}) + sorted(generalist.heads)
    if extra:
        raise CheckpointError(f"export to '{config.model_type}': expected an audio encoder and no heads, got {extra}")
    encoder: Any = generalist.encoders["audio"]
    projector: Any = generalist.projectors["audio"]
    tensors: dict[str, Tensor] = prefixed("model.language_model.", generalist.language_model.model.base_model)
    tensors |= {"lm_head.weight": generalist.language_model.head_weight.detach()}
    tensors |= prefixed("model.audio_tower.", encoder.tower)
    tensors |= prefixed("model.multi_modal_projector.linear.", projector.layers[0])
    model = Qwen2AudioForConditionalGeneration(config)
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    if missing or unexpected:
        raise CheckpointError(f"export to '{config.model_type}': missing {missing[:5]}, unexpected {unexpected[:5]}")
    model.save_pretrained(str(out))
    load_their_tokenizer(source, "{{ '' }}").save_pretrained(str(out))
    copy_files(source, out)


def _config(source: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{source}': expected a model directory of transformers: {error}") from None
    if not isinstance(config, Qwen2AudioConfig):
        raise CheckpointError(f"'{source}': expected 'qwen2_audio', got '{config.model_type}'")
    return config
