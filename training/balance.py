"""Gradients balanced over tasks: Uni-Perceiver v2's AdamW for steps of one task each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from training.optimizer import global_grad_norm


@dataclass
class Balance:
    """Balanced gradients, for unmixed steps (``data.init_args.mixture.unmixed: true``).

    Args:
        weights: Source -> ω, the length that its gradients get; 1 for the others.
    """

    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for source, weight in self.weights.items():
            if not weight > 0:
                raise ValueError(f"model.init_args.balance.weights['{source}']: expected above 0, got {weight}")


class BalancedAdamW(torch.optim.Optimizer):
    """AdamW whose steps come from one task each, task k with probability s_k (https://arxiv.org/abs/2211.09808).

    A step of task k takes its gradient at length ω_k, whatever the scale of its loss, and divides what it adds to both
    moments by s_k, so that these are expected sums over tasks and not over what was drawn:

    ``g ← ω_k ∇L_k / ‖∇L_k‖``, ``m ← β₁ m + (1 − β₁) g / s_k``, ``n ← β₂ n + (1 − β₂) g² / s_k``,
    ``θ ← θ − α (m̂ / (√n̂ + ε) + λ θ)``, with Adam's bias correction in m̂ and n̂.

    No scaling of gradients does this: it would divide n by s_k². Departures: the norm is that of all parameters
    together (the paper does not say which); a parameter without a gradient keeps its moments and its place, as in
    AdamW. The best learning rate lies below AdamW's. Gradients are not clipped.

    Args:
        groups: Parameter groups with ``lr`` and ``weight_decay``.
        betas: Shares of the old moments.
        eps: Added to the root of the second moment.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], betas: tuple[float, float] = (0.9, 0.98), eps: float = 1e-8
    ) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, "betas": betas, "eps": eps})
        self._task: tuple[float, float] | None = None

    def set_task(self, probability: float, weight: float = 1.0) -> None:
        """Say what the gradients come from, before every step.

        Args:
            probability: s_k, that of this task being drawn.
            weight: ω_k.

        Raises:
            ValueError: If the probability is not one.
        """
        if not 0 < probability <= 1:
            raise ValueError(f"probability of a task: expected above 0, at most 1, got {probability}")
        self._task = probability, weight

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Raises:
            RuntimeError: If the task was not set since the last step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._task is None:
            raise RuntimeError("expected set_task before every step, got none")
        probability, weight = self._task
        self._task = None
        groups = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        norm = global_grad_norm(p for _, parameters in groups for p in parameters)
        scale = weight / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        for group, parameters in groups:
            if parameters:
                self._move(group, parameters, scale, probability)
        return loss

    def _move(self, group: dict[str, Any], parameters: list[Tensor], scale: Tensor, probability: float) -> None:
        states = [self._state_of(parameter) for parameter in parameters]
        firsts, seconds = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        gradients = torch._foreach_mul([p.grad for p in parameters if p.grad is not None], scale)
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(firsts, beta1)
        torch._foreach_add_(firsts, gradients, alpha=(1 - beta1) / probability)
        torch._foreach_mul_(seconds, beta2)
        torch._foreach_addcmul_(seconds, gradients, gradients, (1 - beta2) / probability)
        for state in states:
            state["step"] += 1
        steps = [float(state["step"]) for state in states]
        roots = torch._foreach_sqrt(seconds)
        torch._foreach_div_(roots, [(1 - beta2**step) ** 0.5 for step in steps])
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(parameters, firsts, roots, [-group["lr"] / (1 - beta1**step) for step in steps])

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state
