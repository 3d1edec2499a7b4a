"""Where a pack's tokens teach, and the token loss: never the logits of all positions at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layers.batch import Batch
from routers.tasks import TaskTable

IGNORE_INDEX = -100
# Of a chunk of our own loss: 16 MiB of float32, unless that would be too few rows for a matrix product.
_CHUNK_LOGITS, _CHUNK_ROWS = 2**22, 256


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


_PLAIN: ContextVar[bool] = ContextVar("plain token loss", default=False)


@contextmanager
def plain_token_loss() -> Iterator[None]:
    """The plain loss inside, with all its logits: for gradients of gradients, which neither other way has."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def routing_places(states: Tensor, batch: Batch, tasks: TaskTable) -> tuple[Tensor, Tensor, list[tuple[str, ...]]]:
    """Supervised tokens that stand outside of calls, opening tokens included.

    Args:
        states: (T, d) hidden states of the pack.
        batch: The pack.
        tasks: Says which tasks the media of a segment allow.

    Returns:
        (n, d) the states before them, (n,) the tokens, and per token the tasks that could begin there.
    """
    positions, tokens = supervised_rows(batch.labels[0], batch.segment_lengths)
    inside = torch.zeros(batch.labels.shape[1], dtype=torch.bool, device=positions.device)
    for calls in batch.calls.values():
        for item in calls:
            start, end = item.call.token_span
            inside[start + 1 : end] = True
    kept = ~inside[positions + 1]
    lengths = torch.tensor(batch.segment_lengths, device=positions.device)
    segments = torch.arange(len(lengths), device=positions.device).repeat_interleave(lengths)
    available = [[tasks.available(kinds, later) for later in (False, True)] for kinds in _kinds_of_segments(batch)]
    places = positions[kept] + 1
    first_ends = _ends_of_first_calls(batch)
    owners = zip(segments[places].tolist(), places.tolist(), strict=True)
    return states[positions[kept]], tokens[kept], [available[own][place >= first_ends[own]] for own, place in owners]


def linear_cross_entropy(
    states: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    new_rows: Tensor | None = None,
    num_known: int | None = None,
) -> Tensor:
    """Summed cross-entropy of ``states @ weight.T + bias`` without the logits of all states at once.

    In full precision torch's chunked kernel does it, where this torch has it. In half precision, under autocast, with
    soft-capping and with new rows our own does: torch's adds up the loss in the operands' type, which was off by 2 %
    in bfloat16, and on a CPU it multiplies in float32.

    Args:
        states: (n, d).
        weight: (vocabulary, d).
        targets: (n,) int64.
        bias: (vocabulary,) or None.
        softcap: Logits become ``softcap · tanh(logit / softcap)``.
        new_rows: (count, d) weight of the tokens that follow those of ``weight``, without a bias.
        num_known: Rows of ``weight`` that stand for tokens, where new ones follow; what lies behind is left out.

    Returns:
        Scalar sum in float32 at least; 0 with a gradient path for n = 0.
    """
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    if num_known is not None and num_known < len(weight):
        weight, bias = weight[:num_known], None if bias is None else bias[:num_known]
    if len(states) == 0 or not states.requires_grad or _PLAIN.get():
        return chunked_cross_entropy(states, targets, lambda rows: _logits(rows, weight, bias, new_rows, softcap))
    options = getattr(nn, "LinearCrossEntropyOptions", None)
    plain = softcap is None and new_rows is None and dtype == weight.dtype and dtype.itemsize >= 4
    if options is not None and plain:
        return F.linear_cross_entropy(states, weight, targets, linear_bias=bias, reduction="sum", options=options())
    with torch.autocast(device, enabled=False):
        loss: Tensor = _ChunkedLinearCrossEntropy.apply(states, weight, bias, new_rows, targets, softcap, dtype)
    return loss


class _ChunkedLinearCrossEntropy(torch.autograd.Function):
    """The gradient is computed with the loss, a chunk of logits at a time; sums are kept in float32 at least."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        new_rows: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        dtype: torch.dtype,
    ) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        factor, total = weight.to(dtype), states.new_zeros((), dtype=wide)
        new_factor = None if new_rows is None else new_rows.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        of_states = torch.empty_like(states)
        of_weight, of_bias, of_new = (
            torch.zeros_like(tensor, dtype=wide) if tensor is not None and tensor.requires_grad else None
            for tensor in (weight, bias, new_rows)
        )
        chunk = max(_CHUNK_ROWS, _CHUNK_LOGITS // len(weight))
        for start in range(0, len(states), chunk):
            rows, wanted = states[start : start + chunk].to(dtype), targets[start : start + chunk, None]
            values = _logits(rows, factor, offset, new_factor).to(wide)
            slope = None
            if softcap is not None:
                values = values.div_(softcap).tanh_()
                slope, values = 1 - values.square(), values.mul_(softcap)
            log_sums = values.logsumexp(-1, keepdim=True)
            total += (log_sums - values.gather(1, wanted)).sum()
            values = values.sub_(log_sums).exp_().scatter_add_(1, wanted, -torch.ones_like(log_sums))
            values = values if slope is None else values.mul_(slope)
            if of_bias is not None:
                of_bias += values[:, : len(weight)].sum(0)
            values = values.to(dtype)
            known, new = values[:, : len(weight)], values[:, len(weight) :]
            of_states[start : start + chunk] = known @ factor
            if new_factor is not None:
                of_states[start : start + chunk] += new @ new_factor
            if of_weight is not None:
                of_weight += known.T @ rows
            if of_new is not None:
                of_new += new.T @ rows
        pairs = ((of_weight, weight), (of_bias, bias), (of_new, new_rows))
        ctx.gradients = (of_states, *(g if g is None or like is None else g.to(like.dtype) for g, like in pairs))
        return total

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None or torch.is_grad_enabled():
            raise RuntimeError("the token loss goes backward once, without create_graph: use plain_token_loss()")
        gradients = tuple(None if g is None else g.mul_(outer) for g in ctx.gradients)
        ctx.gradients = None
        return (*gradients, None, None, None)


def _logits(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    new_rows: Tensor | None,
    softcap: float | None = None,
) -> Tensor:
    logits = F.linear(states, weight, bias)
    if new_rows is not None:
        logits = torch.cat([logits, F.linear(states, new_rows.to(states.dtype))], dim=-1)
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def chunked_cross_entropy(
    states: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], chunk: int = 256
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

    if _PLAIN.get() or len(states) <= chunk:
        return loss(states, targets)
    total: Tensor | float = 0.0
    for rows, wanted in zip(states.split(chunk), targets.split(chunk), strict=True):
        recomputed = torch.is_grad_enabled()
        total = total + (checkpoint(loss, rows, wanted, use_reentrant=False) if recomputed else loss(rows, wanted))
    assert isinstance(total, Tensor)
    return total


def _kinds_of_segments(batch: Batch) -> list[list[str]]:
    """The media that the language model reads."""
    kinds: list[list[str]] = [[] for _ in batch.segment_lengths]
    for kind, media in batch.media.items():
        for segment, length in zip(media.segments.tolist(), media.token_lengths, strict=True):
            if length:
                kinds[segment].append(kind)
    return kinds


def _ends_of_first_calls(batch: Batch) -> list[float]:
    """Where the first call of each segment ends, past everything where there is none."""
    ends = [math.inf] * len(batch.segment_lengths)
    for item in (item for calls in batch.calls.values() for item in calls):
        ends[item.segment] = min(ends[item.segment], item.call.token_span[1])
    return ends
