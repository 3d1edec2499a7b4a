"""Adapters of a frozen language model: low-rank updates of its linear layers, by peft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from models.adapters.lora_experts import ExpertLinear
from models.adapters.prompt_gate import GateNetwork

ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class Lora:
    """Low-rank adaptation, ``y = W x + (alpha / rank) · B A x`` (https://arxiv.org/abs/2106.09685).

    Args:
        rank: Rows of A, columns of B; B begins at zero.
        alpha: Scale of the update, over the rank.
        dropout: Of the update's input.
        targets: Ends of the names of the linear layers that get one.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: Sequence[str] = ATTENTION_AND_MLP


def add_lora(model: nn.Module, lora: Lora) -> None:
    """Put low-rank updates into a model, whose own parameters are frozen.

    Args:
        model: Changed in place; the updates' parameters are named ``*.lora_A.*`` and ``*.lora_B.*``.
        lora: Which.

    Raises:
        ValueError: If peft is not installed, or no layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ValueError("lora: expected the package peft; install the extra 'adapters'") from None
    ends = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    targets = [name for name in lora.targets if name in ends]
    if not targets:
        raise ValueError(f"lora.targets: expected some of {sorted(ends)}, got {list(lora.targets)}")
    config: Any = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, bias="none"
    )
    inject_adapter_in_model(config, model)


def merge_adapters(model: nn.Module) -> int:
    """Fold every low-rank update into the layer that it updates; returns how many there were.

    Raises:
        ValueError: If a gate or a router weighs the updates: no one matrix does what they do.
    """
    from peft.tuners.lora import LoraLayer

    if any(isinstance(module, GateNetwork) for module in model.modules()):
        raise ValueError("expected updates that are always the same, got a prompt gate, which cannot be merged")

    if any(isinstance(module, ExpertLinear) for module in model.modules()):
        raise ValueError("expected updates that are always the same, got experts with a router, which cannot be merged")
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for name, module in found:
        layer: Any = module
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return len(found)
