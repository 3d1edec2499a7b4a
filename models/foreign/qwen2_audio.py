"""Qwen2-Audio directories of transformers, to ours and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Qwen2AudioForConditionalGeneration

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

MODEL_TYPE = "qwen2_audio"
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
    config = load_their_config(source, [MODEL_TYPE])
    model = load_their_model(Qwen2AudioForConditionalGeneration, source)
    own: Any = model.model
    tensors = language_model_tensors(model)
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
    encoder, projector = only_parts(generalist, "audio", MODEL_TYPE)
    tensors = prefixed("model.audio_tower.", encoder.tower)
    tensors |= prefixed("model.multi_modal_projector.linear.", projector.layers[0])
    config = load_their_config(source, [MODEL_TYPE])
    export_model(generalist, Qwen2AudioForConditionalGeneration, config, tensors, source, out)
