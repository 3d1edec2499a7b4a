"""Muon for the hidden matrices, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from training.optimizer import local

Quintic = tuple[float, float, float]
JORDAN: tuple[Quintic, ...] = ((3.4445, -4.7750, 2.0315),) * 5
"""Newton-Schulz iterations of one odd quintic, steep at zero (https://kellerjordan.github.io/posts/muon/)."""
MINIMAX: tuple[Quintic, ...] = (
    (8.38369, -24.76606, 18.35722),
    (4.04342, -3.01141, 0.56951),
    (3.50558, -2.62667, 0.52572),
    (2.49012, -1.83428, 0.43684),
)
"""Each the best odd quintic for the interval that the one before leaves (https://arxiv.org/abs/2505.16932), from
[0.003, 1] on: four come to within 0.20 of one there, where five of Jordan's come to within 0.32."""
_NORM_MARGIN, _STEP_MARGIN = 1.02, 1.01
"""How much smaller matrices are in 16 bits before the iterations, and what enters every one but the last. Beyond one
the polynomials climb: rounding took the only singular value of a matrix of rank one there, and its update to 1e11."""


def orthogonalise(updates: Tensor, quintics: Sequence[Quintic] = MINIMAX, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pull the singular values of matrices towards one: ``U S Vᵀ -> U S' Vᵀ`` with ``S'`` within 0.8 to 1.2.

    Args:
        updates: (n, rows, columns); matrices of one shape go through the iterations together.
        quintics: The iterations: ``a, b, c`` of ``a·x + b·x³ + c·x⁵``.
        dtype: Of the matrix products; bfloat16 suffices where it is fast.

    Returns:
        (n, rows, columns) in ``dtype``.
    """
    x = updates
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    rounded = torch.finfo(dtype).bits == 16
    norm = x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    x = (x / (norm * _NORM_MARGIN if rounded else norm)).to(dtype)
    for number, (a, b, c) in enumerate(quintics):
        if rounded and number < len(quintics) - 1:
            a, b, c = a / _STEP_MARGIN, b / _STEP_MARGIN**3, c / _STEP_MARGIN**5
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def muon_adamw(groups: Sequence[dict[str, Any]], betas: tuple[float, float], precision: str) -> MuonAdamW:
    """The optimizer for a trainer's precision: where that is bfloat16, Muon's products are too."""
    return MuonAdamW(groups, betas, dtype=torch.bfloat16 if "bf16" in str(precision) else torch.float32)


class _AdamW(torch.optim.AdamW):
    """AdamW that steps on shards as on the tensors that they are: what it does is elementwise."""

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        has_complex = super()._init_group(group, *lists)
        for tensors in lists:
            tensors[:] = [local(tensor) for tensor in tensors]
        return bool(has_complex)


class MuonAdamW(torch.optim.Optimizer):
    """AdamW (fused), with Muon (https://kellerjordan.github.io/posts/muon/) for groups that say ``muon: True``.

    A Muon group's matrices, and convolutions as matrices with a row per output channel, move by the orthogonalised
    Nesterov momentum of their gradients, times ``√max(1, rows / columns)``. What torch.optim.Muon computes one matrix
    after the other in bfloat16 is done here for all matrices of a shape at once and in a dtype of choice (bfloat16 is
    slow on most CPUs), and both algorithms step as one optimizer.

    Of matrices that are sharded by rows (FSDP2), every process puts together some, orthogonalises these and gives the
    others their rows: the result is that of one process.

    Args:
        groups: Parameter groups with ``lr`` and ``weight_decay``.
        betas: AdamW's.
        momentum: Muon's.
        quintics: The iterations of :func:`orthogonalise`.
        dtype: Of their matrix products.

    Raises:
        ValueError: If a Muon group holds a parameter of fewer than two axes, or one that is not sharded by rows.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        betas: tuple[float, float] = (0.9, 0.98),
        momentum: float = 0.95,
        quintics: Sequence[Quintic] = MINIMAX,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.momentum, self.quintics, self.dtype = momentum, quintics, dtype
        groups = [{"muon": False, **group} for group in groups]
        self._adamw = _AdamW(groups, betas=betas, fused=True)  # also fills in its defaults
        super().__init__(groups, self._adamw.defaults)
        for parameter in (p for group in self.param_groups if group["muon"] for p in group["params"]):
            if parameter.ndim < 2:
                raise ValueError(f"Muon: expected matrices, got a parameter of shape {tuple(parameter.shape)}")
            if isinstance(parameter, DTensor) and tuple(parameter.placements) != (Shard(0),):
                raise ValueError(f"Muon: expected matrices sharded by rows, got {parameter.placements}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
        self._adamw.state = self.state  # load_state_dict replaces both
        self._adamw.step()
        for group in self.param_groups:
            if group["muon"]:
                self._muon(group)
        return loss

    def _muon(self, group: dict[str, Any]) -> None:
        shapes: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                rows = parameter.shape[0]
                shapes[rows, parameter.numel() // rows].append(parameter)
        for (rows, columns), parameters in shapes.items():
            moves = [local(self._nesterov(parameter)) for parameter in parameters]
            stacked = torch.stack([move.reshape(len(move), columns) for move in moves])
            first = parameters[0]
            if isinstance(first, DTensor):
                updates = self._orthogonalise_shards(stacked, first, rows)
            else:
                updates = orthogonalise(stacked, self.quintics, self.dtype)
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                own = local(parameter)
                own.mul_(1 - group["lr"] * group["weight_decay"])
                own.add_(update.reshape(own.shape), alpha=-rate)

    def _orthogonalise_shards(self, stacked: Tensor, like: DTensor, rows: int) -> Tensor:
        """(n, own rows, columns) of n matrices -> the same rows of the orthogonalised matrices."""
        mesh, size = like.device_mesh, torch.Size((len(stacked), rows, stacked.shape[2]))
        stride = (rows * size[2], size[2], 1)
        by_rows = DTensor.from_local(stacked, mesh, [Shard(1)], run_check=False, shape=size, stride=stride)
        whole = by_rows.redistribute(placements=[Shard(0)]).to_local()
        updates = orthogonalise(whole, self.quintics, self.dtype).contiguous()
        by_matrix = DTensor.from_local(updates, mesh, [Shard(0)], run_check=False, shape=size, stride=stride)
        return by_matrix.redistribute(placements=[Shard(1)]).to_local()

    def _nesterov(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        assert parameter.grad is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"].lerp_(parameter.grad, 1 - self.momentum)
        return parameter.grad.lerp(buffer, self.momentum)
