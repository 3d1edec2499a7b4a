"""Rows of all processes, for losses that compare every call of a step with every other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Gathered:
    """The rows of all processes, in the order of their ranks.

    Args:
        rows: (N, d); this process's own carry their gradient, the others' none.
        numbers: (N, k) integers that came with them.
        own: (N,) True at this process's rows.
    """

    rows: Tensor
    numbers: Tensor
    own: Tensor


def gather(rows: Tensor, numbers: Tensor, across: bool) -> Gathered:
    """Gather rows of any number from all processes.

    There is no collective in the backward pass, so that no process can wait for another there. A loss that is to have
    the gradient of a single process must therefore be computed whole by every process: its gradient with respect to the
    own rows is then complete, and what the processes add up is the gradient of all (see
    :func:`heads.embedding.contrast.shared_sum`).

    Args:
        rows: (n, d), n differing between processes.
        numbers: (n, k) int64.
        across: Whether to gather at all; without it, and in a single process, the rows are all there is.
    """
    own = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    if not (across and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return Gathered(rows, numbers, own)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size)]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    counts = [int(size) for size in sizes]
    all_rows, all_numbers = _gather_padded(rows.detach(), counts), _gather_padded(numbers, counts)
    all_rows[rank] = rows
    marks = [torch.full((count,), place == rank, device=rows.device) for place, count in enumerate(counts)]
    return Gathered(torch.cat(all_rows), torch.cat(all_numbers), torch.cat(marks))


def _gather_padded(values: Tensor, counts: list[int]) -> list[Tensor]:
    padded = values.new_zeros(max(counts), values.shape[1])
    padded[: len(values)] = values
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return [item[:count] for item, count in zip(gathered, counts, strict=True)]
