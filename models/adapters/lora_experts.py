"""Several low-rank updates of a frozen linear layer, mixed per token by a router (UnifiedMLLM's third stage)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class LoraExperts:
    """A mixture of low-rank updates, ``y = W x + (alpha / rank) · Σ_e softmax(R x)_e · B_e A_e x``.

    LoRAMoE (https://arxiv.org/abs/2312.09979) puts it on the feed-forward layers. Every expert computes for every
    token, which costs what one update of rank ``num_experts · rank`` does.

    Args:
        num_experts: E.
        rank: Of each expert.
        alpha: Scale of the update, over the rank.
        targets: Ends of the names of the linear layers that get experts.
        balance_weight: Weight, beside the token loss, of the squared coefficient of variation of the experts' shares
            (https://arxiv.org/abs/1701.06538, equation 7): 0 where all are used alike.
    """

    num_experts: int = 4
    rank: int = 8
    alpha: int = 16
    targets: Sequence[str] = ("gate_proj", "up_proj", "down_proj")
    balance_weight: float = 0.01


class ExpertLinear(nn.Module):
    """A frozen linear layer with experts beside it; see :class:`LoraExperts`.

    Args:
        base_layer: The layer.
        experts: Which experts.
    """

    def __init__(self, base_layer: nn.Linear, experts: LoraExperts) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scaling = experts.alpha / experts.rank
        weight, size = base_layer.weight, (experts.num_experts, experts.rank)
        self.router = nn.Linear(base_layer.in_features, experts.num_experts, bias=False).to(weight)
        nn.init.zeros_(self.router.weight)
        self.experts_A = nn.Parameter(weight.new_empty(*size, base_layer.in_features))
        for expert in self.experts_A:
            nn.init.kaiming_uniform_(expert, a=math.sqrt(5))  # as peft's lora_A
        self.experts_B = nn.Parameter(weight.new_zeros(size[0], base_layer.out_features, size[1]))
        self.shares: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out); in training, ``shares`` becomes the experts' mean weights (E,)."""
        weights = self.router(x).float().softmax(-1)
        if self.training:
            self.shares = weights.flatten(0, -2).mean(0)
        low = F.linear(x, self.experts_A.flatten(0, 1)).unflatten(-1, self.experts_A.shape[:2])
        low = (low * weights.to(low.dtype).unsqueeze(-1)).flatten(-2)
        update = F.linear(low, self.experts_B.transpose(0, 1).flatten(1))
        output: Tensor = self.base_layer(x) + update * self.scaling
        return output


def add_experts(model: nn.Module, experts: LoraExperts) -> None:
    """Put experts beside linear layers of a model, whose own parameters are frozen.

    Args:
        model: Changed in place; new parameters are named ``*.router.weight``, ``*.experts_A`` and ``*.experts_B``.
        experts: Which.

    Raises:
        ValueError: If no layer has such a name, or a number is not positive.
    """
    if experts.num_experts < 1 or experts.rank < 1:
        raise ValueError(f"lora_experts: expected at least 1, got {experts.num_experts} of rank {experts.rank}")
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = {name: module for name, module in linear.items() if name.rsplit(".", 1)[-1] in experts.targets}
    if not chosen:
        ends = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise ValueError(f"lora_experts.targets: expected some of {ends}, got {list(experts.targets)}")
    model.requires_grad_(False)
    for name, module in chosen.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, ExpertLinear(module, experts))


def balance_loss(model: nn.Module) -> Tensor:
    """Mean over the layers of the squared coefficient of variation of the experts' shares in the last forward.

    The shares are forgotten, and with them the graph that they hold; the model has to have been in training mode.
    """
    variations = []
    for module in model.modules():
        if isinstance(module, ExpertLinear) and module.shares is not None:
            variations.append(len(module.shares) * module.shares.square().sum() - 1)
            module.shares = None
    return torch.stack(variations).mean()
