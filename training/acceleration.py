"""Doing the same with less memory or time: recomputed layers, compiled layers, products in eight bits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from models.attention import ATTENTION_NAME, switchyard_attention
from models.generalist import Generalist


@dataclass
class Acceleration:
    """What is done to a model before it is trained.

    Args:
        recomputed: Patterns (``re.search``) of repeated layers, such as ``^language_model`` or ``^encoders.image``,
            whose activations are computed again in the backward pass instead of kept; about a third more arithmetic.
        compiled: Compile the language model's layers with this backend of torch.compile, such as ``inductor``. Give the
            data module ``static_shapes``, or every new length of a pack is compiled anew. Attention stays as it is.
        float8: Compute the language model's linear layers in eight bits (needs torchao, and a GPU of compute capability
            8.9). Layers whose sizes are no multiples of 16 stay as they are.
    """

    recomputed: Sequence[str] = field(default_factory=list)
    compiled: str | None = None
    float8: bool = False


def accelerate(generalist: Generalist, acceleration: Acceleration) -> None:
    """Change a model in place; before it is sharded, after it is loaded.

    Raises:
        ValueError: If a pattern matches no repeated layer, or eight bits are asked for where they cannot be had.
    """
    if acceleration.float8:
        _to_float8(generalist)
    layers = dict(repeated_layers(generalist))
    for pattern in acceleration.recomputed:
        found = [module for name, module in layers.items() if re.search(pattern, name)]
        if not found:
            stacks = sorted({name.rpartition(".")[0] for name in layers})
            raise ValueError(
                f"model.init_args.acceleration.recomputed: expected a pattern of layers in {stacks}, got '{pattern}'"
            )
        for module in found:
            _recompute(module)
    if acceleration.compiled is not None:
        # Segments differ from pack to pack, and attention over them is a kernel of its own.
        AttentionInterface.register(ATTENTION_NAME, torch.compiler.disable(switchyard_attention))
        for block in generalist.language_model.blocks:
            block.compile(backend=acceleration.compiled)


def repeated_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of every outermost stack of layers of one kind."""
    inside: tuple[str, ...] = ()
    for name, child in module.named_modules():
        if isinstance(child, nn.ModuleList | nn.Sequential) and not name.startswith(inside or ("\0",)):
            kinds = {type(layer) for layer in child}
            if len(child) > 0 and len(kinds) == 1 and any(True for _ in child[0].children()):
                inside = (*inside, f"{name}.")
                yield from ((f"{name}.{index}", layer) for index, layer in enumerate(child))


def _recompute(module: nn.Module) -> None:
    """Wrap a layer's forward, so that hooks of FSDP2 stay outside; transformers' own way skips frozen layers."""
    if isinstance(module.forward, partial):
        return
    module.forward = partial(_recomputed, module.forward)


def _recomputed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _to_float8(generalist: Generalist) -> None:
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    if capability is None or capability < (8, 9):
        got = "no GPU" if capability is None else f"{capability[0]}.{capability[1]}"
        raise ValueError(f"model.init_args.acceleration.float8: expected compute capability 8.9 or more, got {got}")
    try:
        from torchao.float8 import convert_to_float8_training
    except ImportError as error:
        raise ValueError(f"model.init_args.acceleration.float8: expected the extra float8 (torchao): {error}") from None

    def suits(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and module.in_features % 16 == 0 and module.out_features % 16 == 0

    for block in generalist.language_model.blocks:
        convert_to_float8_training(block, module_filter_fn=suits)
