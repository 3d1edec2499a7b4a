"""Building a model whose parameters take no memory until they are given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules built inside have parameters without memory, and real buffers."""

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        return None if parameter.is_meta else nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    # torch's annotation forgets that a hook may return the parameter to register instead.
    handle = register_module_parameter_registration_hook(on_meta)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def give(module: nn.Module, tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    """Have a module use tensors as its parameters and buffers, without a copy.

    Args:
        module: Built by :func:`parameters_on_meta`, or not.
        tensors: Name -> tensor.
        aliases: Name -> the name whose parameter it shares.
    """
    module.load_state_dict(dict(tensors), strict=False, assign=True)
    for alias, name in aliases.items():
        parent, _, child = alias.rpartition(".")
        owner, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), child, getattr(module.get_submodule(owner), own))
