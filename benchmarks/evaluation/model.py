"""A small LLaVA with random weights, as transformers saves it and as ours, and the questions that both are asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from inference.conversation import Conversation
from models.__main__ import main as models_main
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskTable

QUESTIONS = (
    "what is it ?",
    "how many of them are there in the picture ?",
    "where is the red one ?",
    "which colour does the largest of the things on the left have ?",
    "is there a dog ?",
    "what is written on the sign behind the two people who are crossing the street ?",
)
SIDE, PATCH = 112, 8
TEXT = "text"
"""Folder of the language model alone."""
PROMPT = 64


def write_model(folder: Path) -> None:
    """``theirs``, its language model alone, and ``ours`` below a folder, all with the same weights.

    196 positions per image, 8 layers of width 384.
    """
    theirs = folder / "theirs"
    tokenizer = train_tokenizer([" ".join(QUESTIONS)] * 4, 300, TaskTable.from_dict({"tasks": []}))
    save_tokenizer(tokenizer, theirs)
    vision = {"model_type": "clip_vision_model", "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6}
    vision |= {"num_attention_heads": 3, "image_size": SIDE, "patch_size": PATCH, "projection_dim": 64}
    text = {"model_type": "llama", "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8}
    text |= {"num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 1024}
    text |= {"vocab_size": 16_000, "eos_token_id": 1, "pad_token_id": 0}
    torch.manual_seed(0)
    parts: dict[str, Any] = {"vision_config": vision, "text_config": text, "image_token_id": len(tokenizer)}
    config = LlavaConfig(**parts)
    model = LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        parameter.data *= 2  # far from uniform logits
    model.save_pretrained(theirs)
    text_config: Any = config.text_config
    alone = LlamaForCausalLM(text_config)
    alone.model.load_state_dict(model.model.language_model.state_dict())
    alone.lm_head.load_state_dict(model.lm_head.state_dict())
    alone.save_pretrained(folder / TEXT)
    norm = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3}
    (theirs / "preprocessor_config.json").write_text(json.dumps(norm))
    if models_main(["convert", "llava", str(theirs), "--out", str(folder / "ours")]):
        raise RuntimeError(f"'{theirs}' could not be converted")


def prompts(number: int) -> torch.Tensor:
    """(number, PROMPT) random ids to be continued."""
    return torch.randint(3, 250, (number, PROMPT), generator=torch.Generator().manual_seed(1))


def conversations(num_images: int) -> list[Conversation]:
    """Six questions about each of some images."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8, generator=generator) for _ in range(num_images)]
    return [Conversation.ask(question, images=[image]) for image in images for question in QUESTIONS]
