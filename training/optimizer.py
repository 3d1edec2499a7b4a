"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_NO_DECAY = re.compile(r"(^|\.)(bias|queries|.*embed.*|.*norm.*)(\.|$)")


def set_trainable(module: nn.Module, patterns: Iterable[str]) -> None:
    """Freeze every parameter whose name matches none of the patterns (``re.search``).

    Raises:
        ValueError: If a pattern matches no parameter, naming its key.
    """
    names = [name for name, _ in module.named_parameters()]
    compiled = [re.compile(pattern) for pattern in patterns]
    for number, pattern in enumerate(compiled):
        if not any(pattern.search(name) for name in names):
            raise ValueError(
                f"model.init_args.trainable[{number}]: pattern '{pattern.pattern}' matches no parameter, such as "
                f"{names[:3]}"
            )
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:  # what its own module holds fixed (Whisper's positions) stays fixed
            parameter.requires_grad_(any(pattern.search(name) for pattern in compiled))


def parameter_groups(
    module: nn.Module,
    learning_rate: float,
    learning_rates: Mapping[str, float],
    weight_decay: float,
    muon: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and decay.

    Biases, norms, embeddings and learned queries, and whatever has one axis, are not decayed.

    Args:
        module: The model.
        learning_rate: For parameters that match no pattern.
        learning_rates: Pattern (``re.search``) -> learning rate; the first match counts.
        weight_decay: For the decayed.
        muon: Pattern -> Muon's learning rate, for the matrices and convolutions among the parameters that match; the
            first match counts.

    Returns:
        Groups for :class:`training.muon.MuonAdamW`.

    Raises:
        ValueError: If a pattern matches no parameter that is trained, naming its key, or nothing is trained.
    """
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("model.init_args.trainable: expected patterns that leave something to train, got none")
    compiled = _compiled("learning_rates", learning_rates, [name for name, _ in trained])
    compiled_muon = _compiled("muon", muon or {}, [name for name, p in trained if _is_hidden(name, p)])
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in trained:
        hidden = _is_hidden(name, parameter)
        decay = weight_decay if hidden else 0.0
        rate = _first_match(compiled_muon, name) if hidden else None
        by_muon = rate is not None
        rate = rate or _first_match(compiled, name) or learning_rate
        group = groups.setdefault(
            (rate, decay, by_muon), {"params": [], "lr": rate, "weight_decay": decay, "muon": by_muon}
        )
        group["params"].append(parameter)
    return list(groups.values())


def _is_hidden(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix or a convolution within the network: decayed, and fit for Muon."""
    return parameter.ndim >= 2 and not _NO_DECAY.search(name)


def _compiled(argument: str, rates: Mapping[str, float], names: Sequence[str]) -> list[tuple[re.Pattern[str], float]]:
    compiled = [(re.compile(pattern), rate) for pattern, rate in rates.items()]
    for pattern, _ in compiled:
        if not any(pattern.search(name) for name in names):
            raise ValueError(
                f"model.init_args.{argument}['{pattern.pattern}']: matches no parameter that is trained"
                + (" and is a matrix within the network" if argument == "muon" else f", such as {list(names)[:3]}")
            )
    return compiled


def _first_match(compiled: Iterable[tuple[re.Pattern[str], float]], name: str) -> float | None:
    return next((rate for pattern, rate in compiled if pattern.search(name)), None)


def warmup_cosine(step: int, warmup_steps: int, total_steps: int, floor: float = 0.02) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine down to ``floor``."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def global_grad_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together, over all processes where they are sharded."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    if not sharded:
        return torch.nn.utils.get_total_norm(gradients)
    own = torch.nn.utils.get_total_norm([local(gradient) for gradient in sharded]).square()
    dist.all_reduce(own, group=sharded[0].device_mesh.get_group())
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    return (own + torch.nn.utils.get_total_norm(whole).square()).sqrt() if whole else own.sqrt()


def clip_gradients(parameters: Iterable[Tensor], max_norm: float, norm: Tensor) -> None:
    """Shorten gradients of length ``norm`` to ``max_norm``, as ``torch.nn.utils.clip_grads_with_norm_`` does."""
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0))


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, where it is sharded; its storage is the tensor's own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
