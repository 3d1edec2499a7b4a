"""Which precision a machine is fast at: measured for about a second, not guessed from its name.

bf16 is several times faster than fp32 on a CPU with AVX512-BF16 or AMX, and many times slower on one without.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Precision = Literal["bf16-mixed", "32-true"]

# (rows, inputs, outputs) of the matrix products of a small transformer's layers on a pack of tokens.
_SHAPES = ((512, 256, 768), (512, 256, 704), (512, 704, 256))
_SECONDS = 0.5


@dataclass(frozen=True)
class Speed:
    """What a machine was measured to do.

    Args:
        precision: What the trainer should use.
        gflops: Measured GFLOP/s of the layers' matrix products, by number format; empty where none was needed.
        reason: One sentence for the log.
    """

    precision: Precision
    gflops: dict[str, float]
    reason: str

    @property
    def best_gflops(self) -> float | None:
        """GFLOP/s in the chosen precision, or None if nothing was measured."""
        return self.gflops.get("bf16" if self.precision == "bf16-mixed" else "fp32")


def suit_precision(parameters: Iterable[nn.Parameter], precision: str) -> None:
    """Give parameters the type that a trainer's precision takes for granted; pretrained ones come as they were stored.

    In mixed precision what is trained is kept in float32, since most updates are smaller than a step of bfloat16, and
    what is frozen stays as it is, at half the memory. In full precision everything is float32 (or float64).

    Args:
        parameters: Frozen or not, as they will be.
        precision: "bf16-mixed", "32-true", ...; of "bf16-true" Lightning takes care.
    """
    full = {"32-true": torch.float32, "64-true": torch.float64}.get(precision)
    for parameter in parameters:
        wanted = full or (torch.float32 if precision.endswith("mixed") and parameter.requires_grad else None)
        if wanted is not None and parameter.is_floating_point() and parameter.dtype != wanted:
            parameter.data = parameter.data.to(wanted)


def choose_precision(seconds: float = _SECONDS) -> Speed:
    """Choose between bf16 and fp32 for this machine.

    On CUDA bf16 is chosen from compute capability 8 on. On the CPU, forward and backward of layers of the quickstart's
    sizes are timed in both formats under autocast, with the number of threads that training will use.

    Args:
        seconds: How long each of the two formats is measured.

    Returns:
        The choice, with what was measured.
    """
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        name = torch.cuda.get_device_name()
        precision: Precision = "bf16-mixed" if major >= 8 else "32-true"
        return Speed(precision, {}, f"{name}, compute capability {major}.{minor}: {precision}")
    gflops = {"fp32": _measure(torch.float32, seconds), "bf16": _measure(torch.bfloat16, seconds)}
    precision = "bf16-mixed" if gflops["bf16"] > gflops["fp32"] else "32-true"
    threads = torch.get_num_threads()
    figures = f"fp32 {gflops['fp32']:.0f} GFLOP/s, bf16 {gflops['bf16']:.0f} GFLOP/s"
    return Speed(precision, gflops, f"CPU with {threads} threads, measured {figures}: {precision}")


def _measure(dtype: torch.dtype, seconds: float) -> float:
    """GFLOP/s of forward and backward of the layers in the fastest step, so that foreign load counts little."""
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(width, outputs, bias=False) for _, width, outputs in _SHAPES]
    values = [torch.randn(rows, width, generator=generator, requires_grad=True) for rows, width, _ in _SHAPES]
    flops = 3 * 2 * sum(rows * width * outputs for rows, width, outputs in _SHAPES)
    fastest, deadline = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < deadline or fastest == float("inf"):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            sums = [layer(value).float().sum() for layer, value in zip(layers, values, strict=True)]
        torch.stack(sums).sum().backward()
        fastest = min(fastest, time.perf_counter() - start)
    return flops / fastest / 1e9
