"""Parts that stay in fp32 while the rest of a model trains in a mixed precision."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils._pytree import tree_map

_HALF = (torch.float16, torch.bfloat16)


class FullPrecision(Callback):
    """Run some modules without autocast, on inputs in fp32.

    For parts that lose digits in 16 bits, and on CPUs for parts that are slower there: products of large matrices gain
    from bfloat16, convolutions of a few channels, and attention over a few tokens or in a backward pass do not.

    Args:
        modules: Patterns (``re.search``) of module names; what lies within a module that matches goes with it.
        device_types: Types of devices on which this counts, such as ``cpu``; on others nothing changes.
    """

    def __init__(self, modules: Sequence[str], device_types: Sequence[str] = ("cpu", "cuda")) -> None:
        self.patterns = [re.compile(pattern) for pattern in modules]
        self.device_types = tuple(device_types)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wrap the modules.

        Raises:
            ValueError: If a pattern matches no module.
        """
        names = [name for name, _ in pl_module.named_modules()]
        for pattern in self.patterns:
            if not any(pattern.search(name) for name in names):
                raise ValueError(f"FullPrecision: pattern '{pattern.pattern}' matches no module, such as {names[1:4]}")
        if pl_module.device.type not in self.device_types:
            return
        wrapped: tuple[str, ...] = ()
        for name, module in pl_module.named_modules():
            if not name.startswith(wrapped) and any(pattern.search(name) for pattern in self.patterns):
                keep_full_precision(module)
                wrapped += (f"{name}.",)


def keep_full_precision(module: nn.Module) -> None:
    """Have a module's forward leave autocast, and take its inputs in fp32 where autocast made them smaller."""
    entered: list[torch.autocast] = []

    def enter(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        device = next(module.parameters()).device.type
        mixed = torch.is_autocast_enabled(device)
        context = torch.autocast(device, enabled=False)
        context.__enter__()
        entered.append(context)
        return tree_map(_full, (args, kwargs)) if mixed else (args, kwargs)

    def leave(*_: Any) -> None:
        entered.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(enter, with_kwargs=True)
    module.register_forward_hook(leave, always_call=True)


def _full(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALF else value
