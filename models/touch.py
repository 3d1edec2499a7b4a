"""A zero that depends on parameters, so that processes with other packs meet the same parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def touch(parameters: Iterable[nn.Parameter], like: Tensor, zeros: bool = False) -> Tensor:
    """A zero whose backward pass visits every trainable parameter that is whole, and adds nothing to its gradient.

    Shards of layers that gather themselves later are left to these layers.

    Args:
        parameters: Of the model.
        like: Whose type and device the zero has.
        zeros: Give every parameter a gradient of zeros, for those that listen to gradients alone; a visit costs
            nothing.
    """
    whole = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]
    zero: Tensor = _Touch.apply(like.detach(), zeros, *whole) if whole else like.new_zeros(())
    return zero


class _Touch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, like: Tensor, zeros: bool, *parameters: Tensor) -> Tensor:
        if zeros:
            ctx.save_for_backward(*parameters)
        return like.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if ctx.saved_tensors:
            return None, None, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)
        return (None,) * len(ctx.needs_input_grad)
