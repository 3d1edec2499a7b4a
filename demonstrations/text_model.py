"""A small language model without media, trained by ``train.py`` from shards and asked through a session."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data.records import Message, Part, Record
from data.shards import ShardWriter
from demonstrations.demonstration import ROOT
from inference.conversation import Conversation
from inference.session import Session
from models.tokenizer import ROLES, load_tokenizer, save_tokenizer, train_tokenizer
from routers.tasks import TaskTable

SOURCE, LICENSE = "made by this demonstration", "CC0-1.0"
LETTER_IDS = 256 + 2 + len(ROLES)
"""Size of a tokenizer that never joins letters: an id per byte, and the control tokens."""
Block = Literal["llama", "gemma3_text"]
_PRELOADED = ["demonstrations.text_model", "training.cli", "training.recipe", "data.datamodule", "models.build"]


@dataclass(frozen=True)
class Example:
    """A question with its answer.

    Args:
        question: What the user says.
        answer: The reply.
        meta: Tags by which mixtures select it.
        context: What stands before the question, in a turn of the system; empty for no such turn.
    """

    question: str
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    context: str = ""

    def asked(self) -> tuple[Message, ...]:
        """The turns before the reply."""
        context = (Message("system", (Part("text", text=self.context),)),) if self.context else ()
        return (*context, Message("user", (Part("text", text=self.question),)))


@dataclass(frozen=True)
class TextModel:
    """Size and schedule of the model.

    Args:
        hidden_size: Width.
        num_layers: Layers.
        max_tokens: Tokens of a pack, one per step.
        learning_rate: AdamW's, for embeddings and norms.
        muon: Muon's, for the hidden matrices.
        by_muon: Patterns of further matrices that Muon moves, such as those of projectors and heads.
        warmup_steps: Of every fit.
        adapters: Arguments of the language model beside its size, such as ``lora``.
        block: Whose layers. In Gemma's words enter at unit scale, and queries and keys are normalised; in Llama's words
            begin at .02 and fade beside what layers add.
    """

    hidden_size: int = 128
    num_layers: int = 4
    max_tokens: int = 4096
    learning_rate: float = 2e-3
    muon: float = 0.02
    by_muon: tuple[str, ...] = ()
    warmup_steps: int = 30
    adapters: Mapping[str, Any] = field(default_factory=dict)
    block: Block = "llama"

    def config(self, tokenizer: Path, vocab_size: int) -> dict[str, Any]:
        """Arguments of the Generalist."""
        heads = max(1, self.hidden_size // 32)
        language_model = {
            "vocab_size": vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": 3 * self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            **(self._gemma(heads) if self.block == "gemma3_text" else {}),
        }
        return {
            "tokenizer": str(tokenizer),
            "tasks": {"tasks": []},
            "language_model": {"model_type": self.block, "config": language_model, **self.adapters},
            "encoders": {},
            "projectors": {},
            "heads": {},
        }

    def _gemma(self, heads: int) -> dict[str, Any]:
        size = self.hidden_size // heads
        rope = {"rope_type": "default", "rope_theta": 10000.0}
        return {
            "head_dim": size,
            "query_pre_attn_scalar": size,
            "layer_types": ["full_attention"] * self.num_layers,
            "rope_parameters": {"full_attention": rope, "sliding_attention": rope},
            "initializer_range": self.hidden_size**-0.5,
        }


def write_examples(directory: Path, prefix: str, examples: Iterable[Example], split: str = "train") -> None:
    """Write examples as shards, unless they are there."""
    if list(directory.glob(f"{prefix}-*.tar")):
        return
    with ShardWriter(directory, prefix, 5000) as writer:
        for number, example in enumerate(examples):
            turns = (*example.asked(), Message("assistant", (Part("text", text=example.answer),)))
            key = f"{prefix}-{number:06d}"
            writer.write(Record(key, prefix, SOURCE, LICENSE, split, turns, meta=dict(example.meta)), {})


def make_tokenizer(directory: Path, texts: Iterable[str], tasks: TaskTable | None = None, size: int = 400) -> int:
    """Train a tokenizer with the tokens of tasks, unless it is there; returns the number of its ids."""
    if not (directory / "tokenizer.json").is_file():
        save_tokenizer(train_tokenizer(texts, size, tasks or TaskTable(())), directory)
    return len(load_tokenizer(directory))


def train(
    model: TextModel,
    tokenizer: Path,
    vocab_size: int,
    data: Mapping[str, Any],
    steps: int,
    seed: int,
    folder: Path,
    init_from: Sequence[Mapping[str, Any]] = (),
    trainable: Sequence[str] = (".",),
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """One fit of a Generalist; returns the checkpoint.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        vocab_size: Ids of the tokenizer.
        data: ``sources`` and ``mixture`` of the data module.
        steps: Optimizer steps.
        seed: Of weights and order.
        folder: The run's.
        init_from: What to go on from, as the recipe takes it.
        trainable: Patterns of the parameters that are trained.
        changes: Arguments of the recipe beside these, or instead of them.
    """
    recipe: dict[str, Any] = {
        "generalist": model.config(tokenizer, vocab_size),
        "trainable": list(trainable),
        "init_from": [dict(item) for item in init_from],
        "learning_rate": model.learning_rate,
        "muon": dict.fromkeys([r"^language_model\..*(self_attn|mlp)\.", *model.by_muon], model.muon),
        "warmup_steps": model.warmup_steps,
        "seed": seed,
        **(changes or {}),
    }
    config = {
        "model": {"class_path": "training.recipe.Recipe", "init_args": recipe},
        "data": {
            "class_path": "data.datamodule.PackedDataModule",
            "init_args": {**data, "max_tokens": model.max_tokens, "seed": seed, "cache": True},
        },
    }
    fit(config, steps, seed, folder)
    return folder / "checkpoint"


def fit(config: Mapping[str, Any], steps: int, seed: int, folder: Path) -> None:
    """One fit by ``train.py``, as anyone would run it, in a process that has its imports behind it.

    Args:
        config: ``model`` and ``data``.
        steps: Optimizer steps.
        seed: Of everything.
        folder: The run's.

    Raises:
        RuntimeError: If it fails, naming its log.
    """
    trainer = {
        "default_root_dir": str(folder),
        "max_steps": steps,
        "accelerator": "auto",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"  # YAML takes JSON
    path.write_text(json.dumps({"seed_everything": seed, **config, "trainer": trainer}, indent=1))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_run, args=(path, folder / "train.log"))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"training failed with status {process.exitcode}; see {folder / 'train.log'}")


def _run(config: Path, log: Path) -> None:
    """``python train.py fit --config CONFIG``, its output in a file."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [str(ROOT / "train.py"), "fit", "--config", str(config)]
    runpy.run_path(sys.argv[0], run_name="__main__")


def open_session(checkpoint: Path) -> Session:
    """A session that writes short greedy replies, many at a time."""
    return Session.from_pretrained(str(checkpoint), max_new_tokens=48, batch_size=100)


def answers(model: Path | Session, examples: Sequence[Example]) -> list[str]:
    """The greedy replies of a checkpoint or an open session."""
    session = model if isinstance(model, Session) else open_session(model)
    return [reply.text for reply in session.generate([Conversation(item.asked()) for item in examples])]


def exact_match(model: Path | Session, examples: Sequence[Example]) -> list[bool]:
    """Whether each greedy reply is the answer."""
    replies = answers(model, examples)
    return [reply.strip() == item.answer.strip() for reply, item in zip(replies, examples, strict=True)]
