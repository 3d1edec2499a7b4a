"""The token loss: supervised rows only, and never the logits of all positions at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IGNORE_INDEX = -100


def supervised_rows(labels: Tensor, segment_lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Where a pack learns: the positions whose state predicts a label, and those labels.

    The first position of a segment is predicted by nothing (the position before it belongs to another sample).

    Args:
        labels: (T,) with -100 where nothing is learned.
        segment_lengths: Tokens per segment.

    Returns:
        (n,) positions of the predicting states and (n,) labels.
    """
    starts = torch.tensor([0, *segment_lengths[:-1]]).cumsum(0).to(labels.device)
    wanted = labels != IGNORE_INDEX
    wanted = wanted.index_fill(0, starts, False)
    positions = wanted.nonzero()[:, 0]
    return positions - 1, labels[positions]


def linear_cross_entropy(
    states: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """Summed cross-entropy of ``states @ weight.T + bias`` without keeping all logits.

    Uses torch's chunked kernel where this torch has it, a recomputed chunked loss elsewhere.

    Args:
        states: (n, d).
        weight: (vocabulary, d).
        targets: (n,) int64.
        bias: (vocabulary,) or None.
        softcap: Logits become ``softcap · tanh(logit / softcap)``, which torch's kernel does not offer.

    Returns:
        Scalar sum; 0 with a gradient path for n = 0.
    """
    options = getattr(nn, "LinearCrossEntropyOptions", None)
    # torch's kernel computes its gradient in the forward and wants one dtype throughout
    plain = softcap is None and states.dtype == weight.dtype and not torch.is_autocast_enabled(states.device.type)
    if len(states) and options is not None and states.requires_grad and plain:
        return F.linear_cross_entropy(states, weight, targets, linear_bias=bias, reduction="sum", options=options())

    def logits(rows: Tensor) -> Tensor:
        values = F.linear(rows, weight, bias)
        return values if softcap is None else torch.tanh(values / softcap) * softcap

    return chunked_cross_entropy(states, targets, logits)


def chunked_cross_entropy(
    states: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], chunk: int = 1024
) -> Tensor:
    """Summed cross-entropy of a few states at a time; the logits are computed again in the backward pass.

    Args:
        states: (n, d).
        targets: (n,) int64.
        logits: (m, d) -> (m, vocabulary).
        chunk: States at a time.

    Returns:
        Scalar sum; 0 with a gradient path for n = 0.
    """
    if len(states) == 0:
        return logits(states.new_zeros(1, states.shape[1])).sum() * 0 + states.sum() * 0

    def loss(rows: Tensor, wanted: Tensor) -> Tensor:
        values = logits(rows)
        if values.dtype in (torch.float16, torch.bfloat16):
            values = values.float()
        return F.cross_entropy(values, wanted, reduction="sum")

    total: Tensor | float = 0.0
    for rows, wanted in zip(states.split(chunk), targets.split(chunk), strict=True):
        if torch.is_grad_enabled() and len(states) > chunk:
            total = total + checkpoint(loss, rows, wanted, use_reentrant=False)
        else:
            total = total + loss(rows, wanted)
    assert isinstance(total, Tensor)
    return total
