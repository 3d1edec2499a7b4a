"""A small LLaVA with random weights, as transformers saves it and as ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from models.__main__ import main as models_main
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskTable
from routers.vocabulary import Vocabulary

MEAN, DEVIATION = 0.5, 0.25
"""Of the normalisation of pixels, in every channel."""
END, PAD = 1, 0


def write_llava(
    folder: Path,
    vision: Mapping[str, Any],
    text: Mapping[str, Any],
    words: Sequence[str],
    scale: float = 1.0,
    layer: int = -2,
) -> int:
    """Write ``theirs`` and ``ours`` below a folder, the same weights.

    Args:
        folder: Where.
        vision: Settings of the CLIP tower.
        text: Settings of the Llama; whether its output layer is its embedding is one of them.
        words: What the tokenizer learns from.
        scale: Factor of the weights; with a larger one the logits are farther from uniform.
        layer: Of the tower, that the projector reads; -1 is the last.

    Returns:
        The id of an image's placeholder.

    Raises:
        RuntimeError: If the model cannot be converted.
    """
    theirs, table = folder / "theirs", TaskTable.from_dict({"tasks": []})
    tokenizer = train_tokenizer(words, 300, table)
    save_tokenizer(tokenizer, theirs)
    image_id = Vocabulary(tokenizer, table).media_ids["image"]
    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "vision_config": {"model_type": "clip_vision_model", "projection_dim": 64, **vision},
        "text_config": {"model_type": "llama", "eos_token_id": END, "pad_token_id": PAD, **text},
        "image_token_id": image_id,
        "vision_feature_layer": layer,
        "tie_word_embeddings": text.get("tie_word_embeddings", False),
    }
    model = LlavaForConditionalGeneration(LlavaConfig(**parts))
    for parameter in model.parameters():
        parameter.data *= scale
    model.save_pretrained(theirs)
    norm = {"image_mean": [MEAN] * 3, "image_std": [DEVIATION] * 3, "resample": 3}
    (theirs / "preprocessor_config.json").write_text(json.dumps(norm))
    if models_main(["convert", "llava", str(theirs), "--out", str(folder / "ours")]):
        raise RuntimeError(f"'{theirs}' could not be converted")
    return image_id
