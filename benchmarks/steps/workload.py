"""A small language model, and steps of random text for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from data.packing import merge_counts, pack
from data.render import IGNORED, Rendered
from layers.batch import Step
from models.plan import BatchPlan
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskTable
from training.recipe import Recipe

VOCABULARY = 4096
LANGUAGE_MODEL = {
    "model_type": "llama",
    "config": {
        "vocab_size": VOCABULARY,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    },
}


def make_recipe(folder: Path) -> Recipe:
    """The same recipe in every arm, its tokenizer below ``folder``."""
    save_tokenizer(train_tokenizer(["text"], 300, TaskTable.from_dict({"tasks": []})), folder / "tokenizer")
    config = {
        "tokenizer": str(folder / "tokenizer"),
        "tasks": {"tasks": []},
        "language_model": LANGUAGE_MODEL,
        "encoders": {},
        "projectors": {},
        "heads": {},
    }
    torch.manual_seed(0)
    return Recipe(generalist=config, trainable=["."], warmup_steps=10, export=None)


def make_steps(plan: BatchPlan, lengths: Sequence[Sequence[int]]) -> list[Step]:
    """A step of one pack for every list of sample lengths; half of each sample is learned."""
    generator = torch.Generator().manual_seed(0)
    steps = []
    for number, own in enumerate(lengths):
        samples = []
        for place, length in enumerate(own):
            ids = torch.randint(0, 256, (length,), generator=generator).tolist()
            samples.append(Rendered(f"{number}-{place}", ids, [IGNORED] * (length // 2) + ids[length // 2 :]))
        packs = [pack(samples, plan)]
        steps.append(Step(packs, merge_counts(packs)))
    return steps
