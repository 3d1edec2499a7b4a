"""Where a stage takes weights from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from models.checkpoint import TOKENIZER, WEIGHTS, CheckpointError
from models.generalist import Generalist
from models.tokenizer import load_tokenizer

_KEY = "model.init_args.init_from"


@dataclass
class InitFrom:
    """Where a stage takes weights from.

    Args:
        path: A safetensors file, or a checkpoint directory.
        prefix: Where its tensors go, such as ``encoders.image.``; empty for a whole model.
        allow_new: Patterns of this model's tensors under ``prefix`` that the source need not have.
    """

    path: str
    prefix: str = ""
    allow_new: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        """The tensors."""
        path = Path(self.path)
        return path / WEIGHTS if path.is_dir() else path


def check_sources(sources: Sequence[InitFrom], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse sources that are not there, or whose tokens are not this model's, before anything is built.

    Rows of embeddings are found by id: with another tokenizer, or another task table, every one would stand for another
    token, and nothing else would tell.

    Raises:
        CheckpointError: Naming the key, and the first token that differs.
    """
    own = tokenizer.get_vocab()
    for number, source in enumerate(sources):
        where = f"{_KEY}[{number}] '{source.path}'"
        if not source.file.is_file():
            raise CheckpointError(f"{where}: expected a safetensors file or a checkpoint directory, got neither")
        folder = Path(source.path) / TOKENIZER
        if not folder.is_dir():
            continue
        theirs = load_tokenizer(folder).get_vocab()
        if theirs != own:
            token = min(token for token, _ in set(theirs.items()) ^ set(own.items()))
            raise CheckpointError(
                f"{where}: expected the tokens of model.init_args.generalist ({len(own)}), got those of another "
                f"tokenizer or task table ({len(theirs)}): '{token}' has id {own.get(token)} here and "
                f"{theirs.get(token)} there"
            )


def load_weights(generalist: Generalist, source: InitFrom) -> None:
    """Copy a source's tensors into the model, strictly.

    Raises:
        CheckpointError: If its tensors do not fit, naming them.
    """
    tensors = {source.prefix + name: tensor for name, tensor in load_file(source.file).items()}
    state = {name: value for name, value in generalist.state_dict().items() if name.startswith(source.prefix)}
    tied = {value.data_ptr() for name, value in state.items() if name in tensors}
    new = [re.compile(pattern) for pattern in source.allow_new]
    missing = [
        name
        for name, value in state.items()
        if name not in tensors and value.data_ptr() not in tied and not any(p.search(name) for p in new)
    ]
    wrong = [name for name, value in tensors.items() if name not in state or state[name].shape != value.shape]
    if missing or wrong:
        raise CheckpointError(
            f"init_from '{source.path}': missing {missing[:5]}, unexpected or of another shape {wrong[:5]}"
        )
    generalist.load_state_dict(tensors, strict=False)
