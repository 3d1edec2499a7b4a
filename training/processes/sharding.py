"""FSDP2: every process keeps a part of each trained parameter and gathers the rest when it is needed.

The language model's layers are units of their own, which every process runs for every pack, whatever is in it. What
else is trained (encoders, projectors, heads, embeddings) forms one unit with the model as a whole: a process without
images then gathers and reduces the image encoder's parameters as all others do, and nobody waits for a unit that it
does not run. That unit stays gathered from the beginning of a pack to the end of its backward pass, so that these parts
should fit into a device's memory once; their optimizer's state is spread. Frozen parameters are whole everywhere, for
they have no gradient and no state to spread, unless ``shard_frozen`` asks for it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from models.on_meta import parameters_on_meta

if TYPE_CHECKING:
    from models.generalist import Generalist


def built_once(rank: int) -> AbstractContextManager[None]:
    """Where a model is built that will be sharded: the first process makes its parameters, the others only shapes."""
    return nullcontext() if rank == 0 else parameters_on_meta()


def shard(
    root: nn.Module,
    generalist: Generalist,
    mesh: DeviceMesh,
    device: torch.device,
    layer_dtype: torch.dtype | None = None,
    shard_frozen: bool = False,
    reshard_after_forward: bool = True,
) -> None:
    """Spread a model that was built under :func:`built_once`; afterwards every process holds its part of the first's.

    Args:
        root: The module that holds ``generalist`` and perhaps others (a teacher), which become whole everywhere.
        generalist: The model; changed in place.
        mesh: One-dimensional, over all processes.
        device: This process's.
        layer_dtype: What the language model's layers are gathered and computed in; their own type by default.
            Gradients are reduced in float32 then.
        shard_frozen: Spread frozen parameters too, for a language model that does not fit otherwise.
        reshard_after_forward: Let go of a layer's parameters between its forward and its backward pass; without it
            they are gathered once per pack and stay.

    Raises:
        ValueError: If this torch cannot reduce parts that a pack does not use, or a parameter outside the model is
            trained.
    """
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise ValueError(f"FSDP2: expected a torch that reduces unused parameters, got {torch.__version__}")
    own = {id(parameter) for parameter in generalist.parameters()}
    outside = [n for n, p in root.named_parameters() if p.requires_grad and id(p) not in own]
    if outside:
        raise ValueError(f"FSDP2: expected trained parameters of the Generalist only, got {outside[:3]}")
    policy = MixedPrecisionPolicy()
    if layer_dtype is not None:
        policy = MixedPrecisionPolicy(param_dtype=layer_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    spread: set[int] = set()
    units: list[nn.Module] = [layer for layer in generalist.language_model.blocks if shard_frozen or _trained(layer)]
    for unit in units:
        _spread(unit, device, spread)
        fully_shard(
            unit,
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=reshard_after_forward,
            ignored_params=None if shard_frozen else _frozen(unit),
        )
    _spread(root, device, spread)
    fully_shard(generalist, mesh=mesh, ignored_params=None if shard_frozen else _frozen(generalist))
    assert isinstance(generalist, FSDPModule)
    generalist.set_reduce_scatter_unused_params(True)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module that may be sharded, on the CPU: whole in the first process, empty in the others.

    Every process has to call it. Tied parameters share a tensor.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    names: dict[int, str] = {}
    ties = {n: names.setdefault(id(p), n) for n, p in module.named_parameters(remove_duplicate=False)}
    state: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if ties.get(name, name) != name:
            if first:
                state[name] = state[ties[name]]
            continue
        tensor = value.full_tensor() if isinstance(value, DTensor) else value
        if first:
            state[name] = tensor.detach().cpu()
    return state


def reshard(module: nn.Module) -> None:
    """Have a module's parameters be this process's parts; a forward without a backward leaves the root's gathered."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def is_sharded(module: nn.Module) -> bool:
    """Whether :func:`shard` spread it."""
    return isinstance(module, FSDPModule)


def _trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _frozen(module: nn.Module) -> set[nn.Parameter]:
    return {parameter for parameter in module.parameters() if not parameter.requires_grad}


def _spread(module: nn.Module, device: torch.device, done: set[int]) -> None:
    """Give every process the first one's parameters and buffers, on its device; ties stay.

    Args:
        module: Whose.
        device: This process's.
        done: Modules that have them already, by ``id``; added to.
    """
    places: dict[int, tuple[nn.Parameter, list[tuple[nn.Module, str]]]] = {}
    for owner in module.modules():
        if id(owner) in done:
            continue
        done.add(id(owner))
        for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(id(parameter), (parameter, []))[1].append((owner, name))
        for name, buffer in owner.named_buffers(recurse=False):
            owner.register_buffer(name, _from_first(buffer, device), name not in owner._non_persistent_buffers_set)
    for parameter, owners in places.values():
        whole = nn.Parameter(_from_first(parameter.detach(), device), requires_grad=parameter.requires_grad)
        for owner, name in owners:
            setattr(owner, name, whole)


def _from_first(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.is_meta:
        own = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    else:
        own = tensor.to(device).contiguous()
    dist.broadcast(own, src=0)
    return own
