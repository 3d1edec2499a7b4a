"""LLaVA-1.5 in the layout of its authors (https://github.com/haotian-liu/LLaVA) to ours.

A folder with the language model and, among its tensors, the projector (``model.mm_projector.*``); ``config.json`` names
the vision tower, whose folder is given beside it. Shards are safetensors or pickles; nothing in them is executed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from encoders.vision import TransformersEncoder
from encoders.vision.transformers_tower import told_preprocessing
from models.checkpoint import CheckpointError
from models.foreign.conversion import (
    Conversion,
    language_model_config,
    llama_config,
    load_their_tokenizer,
    prefixed,
    settings_of,
    stored_tensors,
)
from models.foreign.llava import VICUNA

MODEL_TYPES = ("llava", "llava_llama")
_PROJECTOR, _TOWER = "model.mm_projector.", "model.vision_tower.vision_tower."


def load(source: str, tower: str | None = None) -> Conversion:
    """Read a folder.

    Args:
        source: Theirs.
        tower: A directory with the CLIP tower that its configuration names, in transformers' format with safetensors.

    Raises:
        CheckpointError: If it is no such model, a shard would execute something, or there is no tower.
    """
    config = _their_config(source)
    if tower is None:
        raise CheckpointError(
            f"llava_original: expected the folder of '{config['mm_vision_tower']}' (--tower), got none"
        )
    tensors: dict[str, Tensor] = {}
    for name, value in stored_tensors(source).items():
        tensors |= _named(name, value)
    encoder = _their_tower(tower)
    if not any(name.startswith("encoders.image.tower.") for name in tensors):  # not tuned, and so not among them
        tensors |= prefixed("encoders.image.tower.", encoder.tower)
    text = llama_config(config)
    return Conversion(
        _our_config(config, text, encoder.tower.config, tower), tensors, load_their_tokenizer(source, VICUNA)
    )


def _their_config(source: str) -> dict[str, Any]:
    path = Path(source, "config.json")
    if not path.is_file():
        raise CheckpointError(f"'{source}': expected a folder with config.json, got none")
    config: dict[str, Any] = json.loads(path.read_text())
    if config.get("model_type") not in MODEL_TYPES or "mm_vision_tower" not in config:
        raise CheckpointError(f"'{source}': expected one of {list(MODEL_TYPES)} with mm_vision_tower, got {config}")
    wanted = {
        "mm_projector_type": ("linear", "mlp2x_gelu"),
        "mm_vision_select_feature": ("patch",),
        "image_aspect_ratio": ("pad", "square"),
        "mm_use_im_start_end": (False,),
    }
    for name, values in wanted.items():
        if config.get(name, values[0]) not in values:
            raise CheckpointError(f"'{source}': {name}: expected one of {list(values)}, got {config[name]!r}")
    return config


def _named(name: str, value: Tensor) -> dict[str, Tensor]:
    """One of their tensors under our name."""
    if name.startswith(_PROJECTOR):
        rest = name.removeprefix(_PROJECTOR)
        return {f"projectors.image.layers.{rest if rest[0].isdigit() else f'0.{rest}'}": value}
    if name.startswith(_TOWER):
        return {f"encoders.image.tower.{name.removeprefix(_TOWER).removeprefix('vision_model.')}": value}
    if name.endswith("rotary_emb.inv_freq"):  # a constant, which old versions of transformers stored
        return {}
    return {f"language_model.model.{name}": value}


def _their_tower(tower: str) -> TransformersEncoder:
    try:
        return TransformersEncoder(pretrained=tower)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{tower}': expected a vision tower of transformers: {error}") from None


def _our_config(config: dict[str, Any], text: LlamaConfig, vision: Any, tower: str) -> dict[str, Any]:
    encoder = {
        "model_type": vision.model_type,
        "config": settings_of(vision),
        "layers": [config.get("mm_vision_select_layer", -2)],
        **told_preprocessing(tower),
        "resize_mode": "pad_square" if config.get("image_aspect_ratio") == "pad" else "resize_crop",
    }
    projector = {
        "input_size": vision.hidden_size,
        "output_size": text.hidden_size,
        "num_layers": 1 if config.get("mm_projector_type", "linear") == "linear" else 2,
        "norms": False,
    }
    return {
        "language_model": language_model_config(text),
        "encoders": {"image": {"class_path": "encoders.vision.TransformersEncoder", "init_args": encoder}},
        "projectors": {"image": {"class_path": "models.projectors.MLPProjector", "init_args": projector}},
        "heads": {},
    }
