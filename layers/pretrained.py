"""Models of transformers with their weights, or their shape alone; names and files that are not what they should be."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

_SHOWN = 5


def load_pretrained(
    model_class: Any, name: str, config: PretrainedConfig | None = None, may_lack: str | None = None, **arguments: Any
) -> Any:
    """Transformers' ``from_pretrained`` from safetensors; on the meta device the architecture without weights.

    A plan of batches, a check of patterns or an estimate of memory needs a model's shape and none of its weights, which
    ``from_pretrained`` refuses to build. Where a file lacks weights, or has them in another shape, transformers warns
    and leaves random ones in their place; here that is an error. What a file has beyond the model is left.

    Args:
        model_class: A class of transformers, an automatic one or one of an architecture.
        name: A local directory or hub id.
        config: The configuration, if not the one that is stored there.
        may_lack: Pattern (``re.search``) of parameters that nobody reads, which the file need not have.
        **arguments: More of ``from_pretrained``'s, such as ``revision``, and settings of the configuration.

    Raises:
        ValueError: If the file is of another architecture, naming what is missing, of another shape and left over, or
            cannot be read.
    """
    arguments["trust_remote_code"] = False
    if torch.empty(0).device.type != "meta":
        given = {} if config is None else {"config": config}
        try:
            model, told = model_class.from_pretrained(
                name,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told of in our words
                **given,
                **arguments,
            )
        except SafetensorError as error:
            raise ValueError(f"'{name}': the weights cannot be read: {error}") from None
        _check_loaded(name, type(model).__name__, told, may_lack)
        return model
    automatic = hasattr(model_class, "from_config")
    implementation = arguments.pop("attn_implementation", None)
    if config is None:
        config_class = AutoConfig if automatic else model_class.config_class
        config = config_class.from_pretrained(name, **arguments)
    chosen = {} if implementation is None else {"attn_implementation": implementation}
    if automatic:
        return model_class.from_config(config, trust_remote_code=False, **chosen)
    return model_class._from_config(config, **chosen)


def _check_loaded(name: str, model: str, told: dict[str, Any], may_lack: str | None) -> None:
    missing = [key for key in told["missing_keys"] if may_lack is None or not re.search(may_lack, key)]
    shapes = [f"{key} {tuple(found)} for {tuple(wanted)}" for key, found, wanted in told["mismatched_keys"]]
    if missing or shapes:
        raise ValueError(
            f"'{name}': expected the weights of a {model}; missing {_some(missing)}, "
            f"of another shape {_some(shapes)}, unexpected {_some(told['unexpected_keys'])}"
        )


def _some(names: Collection[str]) -> str:
    return f"{len(names)} {sorted(names)[:_SHOWN]}"


def architecture(model_type: str, settings: dict[str, Any]) -> PretrainedConfig:
    """The configuration of an architecture of transformers.

    Args:
        model_type: transformers' name of it, such as "llama" or "dinov2".
        settings: Arguments of its configuration.

    Raises:
        ValueError: If transformers does not know the name, with the nearest names that it knows.
    """
    known_name(model_type, CONFIG_MAPPING.keys(), "model_type: expected an architecture of transformers")
    return AutoConfig.for_model(model_type, **settings)


def known_name(name: str, known: Iterable[str], expected: str) -> str:
    """A name.

    Args:
        name: The name.
        known: All that there are.
        expected: The beginning of the error, which says what they are.

    Raises:
        ValueError: If it is none of them, with the nearest ones.
    """
    names = list(known)
    if name not in names:
        near = get_close_matches(name, names, n=3, cutoff=0.5)
        raise ValueError(f"{expected}, got '{name}'" + (f"; near: {', '.join(near)}" if near else ""))
    return name


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        ValueError: If it is cut short, or no such file, naming it.
    """
    check_safetensors(path)
    return load_file(path)


def check_safetensors(path: str | Path) -> None:
    """Read a file's header, which says how long the file is.

    Raises:
        ValueError: If it is cut short, or no such file, naming it.
    """
    try:
        with safe_open(path, framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise ValueError(f"'{path}': expected a whole safetensors file, got one that cannot be read: {error}") from None
