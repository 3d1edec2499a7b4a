"""From the states of a call to one vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from heads.attend import masked_mean, pad_ragged

PoolingKind = Literal["last", "first", "mean", "prompt", "weighted", "attention"]


class Pooling(nn.Module):
    """Pools ragged states.

    ``last`` is the state of the last token, which is the anchor of a call, or an end-of-sequence token (the choice of
    https://arxiv.org/abs/2408.12194 for decoders); ``first`` is that of the first, a bidirectional encoder's class
    token; ``mean`` is over all states, and ``prompt`` over all but the last, which leaves the anchor out; ``weighted``
    is the mean under the weights ``i / Σ i`` of the positions i from 1 on, by which later tokens of a causal model
    count more (https://arxiv.org/abs/2202.08904); ``attention`` is the mean under ``softmax(q · LayerNorm(x) / √d)``
    with a learned q.

    Args:
        size: Width d of the states.
        kind: Which.
    """

    def __init__(self, size: int, kind: PoolingKind = "last") -> None:
        super().__init__()
        if kind not in get_args(PoolingKind):
            raise ValueError(f"pooling: expected one of {', '.join(get_args(PoolingKind))}, got '{kind}'")
        self.kind = kind
        self.query = nn.Parameter(torch.zeros(size)) if kind == "attention" else None
        self.norm = nn.LayerNorm(size) if kind == "attention" else None

    def forward(self, states: Tensor, lengths: Sequence[int]) -> Tensor:
        """Pool the states of n calls.

        Args:
            states: (ΣK, d).
            lengths: K per call, at least 1; at least 2 for ``prompt``.

        Returns:
            (n, d).

        Raises:
            ValueError: If a call has too few states.
        """
        least = 2 if self.kind == "prompt" else 1
        short = [length for length in lengths if length < least]
        if short:
            hint = "; the task must pass its prompt's states (prompt_tokens: states)" if least == 2 else ""
            raise ValueError(f"pooling '{self.kind}': expected at least {least} states per call, got {short[0]}{hint}")
        ends = torch.tensor(lengths, device=states.device).cumsum(0)
        if self.kind == "last":
            return states[ends - 1]
        if self.kind == "first":
            return states[ends - torch.tensor(lengths, device=states.device)]
        rows = states.split(list(lengths))
        padded, mask = pad_ragged([row[:-1] for row in rows] if self.kind == "prompt" else rows)
        if self.kind in ("mean", "prompt"):
            return masked_mean(padded, mask)
        if self.kind == "weighted":
            scores = torch.arange(1, padded.shape[1] + 1, device=states.device).log().expand(padded.shape[:2])
        else:
            assert self.query is not None and self.norm is not None
            scores = self.norm(padded) @ self.query / padded.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return torch.einsum("nk,nkd->nd", scores.softmax(dim=-1).to(padded.dtype), padded)
