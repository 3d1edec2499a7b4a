"""Building a model whose parameters take no memory until they are given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules built inside have parameters without memory, and real buffers."""
    register = nn.Module.register_parameter  # the one way by which every parameter comes into a module

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None and parameter.device.type != "meta":
            own = module._parameters[name]
            assert own is not None
            module._parameters[name] = nn.Parameter(own.to("meta"), requires_grad=own.requires_grad)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


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
