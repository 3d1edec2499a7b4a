"""Where a stage takes weights from."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from layers.pretrained import read_safetensors
from models.checkpoint import MANIFEST, TOKENIZER, WEIGHTS, CheckpointError, check_bases
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

    A layer that has got an adapter since takes the weights of the layer without. What a checkpoint does not store
    because it is its base's, this model has to have from the same base.

    Raises:
        CheckpointError: If the file is cut short, its tensors do not fit (they are named), or the base is another.
    """
    try:
        tensors = {source.prefix + name: tensor for name, tensor in read_safetensors(source.file).items()}
    except ValueError as error:
        raise CheckpointError(f"init_from '{source.path}': {error}") from None
    kept = _kept_from_bases(generalist, source)
    state = {name: value for name, value in generalist.state_dict().items() if name.startswith(source.prefix)}
    given = {name: _stored_name(name, tensors.keys() | kept) for name in state}
    tied = {state[name].data_ptr() for name, stored in given.items() if stored in tensors}
    new = [re.compile(pattern) for pattern in source.allow_new]
    missing = [
        name
        for name, value in state.items()
        if given[name] is None and value.data_ptr() not in tied and not any(p.search(name) for p in new)
    ]
    found = {name: tensors[stored] for name, stored in given.items() if stored in tensors}
    wrong = [name for name in tensors if name not in given.values()]
    wrong += [name for name, value in found.items() if state[name].shape != value.shape]
    if missing or wrong:
        raise CheckpointError(
            f"init_from '{source.path}': missing {missing[:5]}, unexpected or of another shape {wrong[:5]}"
        )
    generalist.load_state_dict(found, strict=False)


def _stored_name(name: str, stored: Collection[str]) -> str | None:
    """The name under which a source has a tensor of the model, or None."""
    return next((n for n in (name, name.replace(".base_layer.", ".")) if n in stored), None)


def _kept_from_bases(generalist: Generalist, source: InitFrom) -> frozenset[str]:
    """Names that a checkpoint directory leaves to its bases."""
    manifest = Path(source.path) / MANIFEST
    if not manifest.is_file():
        return frozenset()
    value = json.loads(manifest.read_text())
    kept = frozenset(value.get("from_bases", []))
    used = [prefix for prefix in value["bases"] if any(name.startswith(prefix) for name in kept)]
    check_bases(generalist, value["bases"], used)
    return kept
