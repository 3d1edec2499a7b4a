"""Tensors of PyTorch's pickled checkpoints, with nothing of what else they hold ever brought to life."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from models.checkpoint import CheckpointError

HARMLESS = (
    "argparse.",
    "collections.",
    "enum.",
    "examples.",
    "fairseq.",
    "numpy.",
    "omegaconf.",
    "pathlib.",
    "typing.",
)
"""Settings that trainers put beside the weights; they are read as :class:`Inert`, whatever they name."""


class Inert:
    """Stands for any object but a tensor: takes what it is given, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)

    def append(self, value: Any) -> None:
        """Take an item of a list."""


def pickled_tensors(path: str | Path, part: str | None) -> dict[str, Tensor]:
    """The tensors of a checkpoint, or of one dictionary in it, mapped from the file.

    PyTorch's own reader of weights builds tensors and plain containers and refuses everything else. What trainers leave
    in a checkpoint beside these (their settings) stands in for nothing here; any other name is refused.

    Args:
        path: The file.
        part: The dictionary's key, such as "model"; None where the checkpoint is that dictionary.

    Raises:
        CheckpointError: If the file cannot be read, names code that is not settings, or has no such dictionary.
    """
    try:
        named = get_unsafe_globals_in_checkpoint(str(path))
        foreign = sorted(name for name in named if not name.startswith(HARMLESS))
        if foreign:
            raise CheckpointError(f"'{path}' would run code: expected tensors and settings, got {foreign[:5]}")
        with safe_globals([(Inert, name) for name in named]):
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"'{path}': expected a checkpoint of PyTorch: {error}") from None
    found = value.get(part) if part is not None and isinstance(value, dict) else value
    if not isinstance(found, dict):
        which = "" if part is None else f" '{part}'"
        raise CheckpointError(f"'{path}': expected a dictionary{which} of tensors, got {type(found).__name__}")
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
