"""A zero that depends on parameters, so that processes with other packs meet the same parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def touch(parameters: Iterable[nn.Parameter], like: Tensor) -> Tensor:
    """A zero whose backward pass visits every trainable parameter that is whole, and adds nothing to its gradient.

    Shards of layers that gather themselves later are left to these layers.

    Args:
        parameters: Of the model.
        like: Whose type and device the zero has.
    """
    whole = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]
    zero: Tensor = _Touch.apply(like.detach(), *whole) if whole else like.new_zeros(())
    return zero


class _Touch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, like: Tensor, *parameters: Tensor) -> Tensor:
        return like.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return (None,) * len(ctx.needs_input_grad)
