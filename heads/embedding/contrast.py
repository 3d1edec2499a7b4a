"""InfoNCE: a query's passage among the passages of the whole step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from heads.attend import full_precision

MAX_SCALE = 100.0
_CHUNK = 1024


def contrast(logits: Tensor, positives: Tensor, excluded: Tensor) -> Tensor:
    """InfoNCE per row: the mean over its positives p of ``-log(exp s_p / (exp s_p + Σ_negatives exp s_j))``.

    With one positive and nothing excluded it is the cross-entropy of the scores.

    Args:
        logits: (n, m) scores over the temperature.
        positives: (n, m) True at a row's positives, at least one per row.
        excluded: (n, m) True where a column is neither positive nor negative of a row.

    Returns:
        (n,) losses.
    """
    logits = full_precision(logits)
    negatives = logits.masked_fill(positives | excluded, float("-inf")).logsumexp(dim=-1, keepdim=True)
    losses = torch.logaddexp(logits, negatives) - logits
    return (losses * positives).sum(dim=-1) / positives.sum(dim=-1)


class Temperature(nn.Module):
    """The temperature τ of scores, fixed or learned as log(1/τ), which is kept below log 100 as in CLIP.

    Args:
        value: τ, or where it begins.
        learned: Whether it is learned.
    """

    def __init__(self, value: float = 0.05, learned: bool = False) -> None:
        super().__init__()
        if not 0 < value or (learned and value < 1 / MAX_SCALE):
            raise ValueError(f"temperature: expected more than 0, {1 / MAX_SCALE} or more if learned, got {value}")
        log_scale = torch.tensor(-math.log(value))
        self.log_scale = nn.Parameter(log_scale) if learned else None
        self.value = value

    def scale(self, like: Tensor) -> Tensor:
        """Scalar 1/τ."""
        if self.log_scale is None:
            return like.new_tensor(1 / self.value)
        return self.log_scale.clamp(max=math.log(MAX_SCALE)).exp().to(like.device)


def shared_sum(losses: Callable[[Tensor, bool], Tensor], own: Tensor, chunk: int = _CHUNK) -> Tensor:
    """The sum of the own rows' losses, with the gradient that all rows have on what is this process's.

    Every process computes the loss of every row. Those of other processes' rows are worth nothing in the sum but carry
    their gradient to the own vectors that they are compared with; what all processes share, such as a temperature, gets
    that of the own rows alone. So the sums and the gradients of all processes add up to those of a single one.

    Args:
        losses: From row numbers (r,), and whether they are this process's, to their losses (r,). Where they are not,
            it must detach the parameters that it uses.
        own: (n,) True at this process's rows.
        chunk: Rows whose scores are held in memory at once; with more rows they are computed again backwards.
    """
    rows, total = torch.arange(len(own), device=own.device), torch.zeros((), device=own.device)
    for mine, part in ((True, rows[own]), (False, rows[~own])):
        for piece in part.split(chunk):
            again = len(rows) > chunk and torch.is_grad_enabled()
            found = checkpoint(losses, piece, mine, use_reentrant=False) if again else losses(piece, mine)
            summed = found.sum()
            total = total + (summed if mine else summed - summed.detach())
    return total
