"""One attention interface for packs and for cached decoding, equal to transformers' own eager attention.

A pack is one row of several samples. Attention never crosses a sample, which also spares the work that a dense mask
would waste. The implementation is registered with transformers under the name ``switchyard``, so every causal language
model that calls its attention through ``ALL_ATTENTION_FUNCTIONS`` can use it.

* CUDA with half precision: variable-length flash attention (``torch.nn.attention.varlen``), windows included.
* CUDA otherwise, and soft-capping and attention sinks there: Flex attention, over blocks of the pack's own mask.
* Elsewhere: scaled dot-product attention per segment; soft-capping and sinks explicitly, per segment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION_NAME = "switchyard"
_SERVED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


@dataclass
class Packing:
    """The segments of a pack, handed to every attention layer.

    Args:
        segment_lengths: Tokens per segment; they sum to the row's length.
        device: Where the cumulative lengths are needed.
    """

    segment_lengths: list[int]
    device: torch.device
    num_attention_calls: int = field(default=0, init=False)
    _block_masks: dict[int | None, Any] = field(default_factory=dict, init=False)

    @cached_property
    def cumulative_lengths(self) -> Tensor:
        """(B + 1,) int32 segment boundaries."""
        bounds = torch.tensor([0, *self.segment_lengths]).cumsum(0).to(torch.int32)
        return bounds.to(self.device, non_blocking=True)

    def block_mask(self, window: int | None) -> Any:
        """Flex attention's mask: within the segment, not ahead, within the window; made once for all layers."""
        if window not in self._block_masks:
            from torch.nn.attention.flex_attention import create_block_mask

            lengths = torch.tensor(self.segment_lengths)
            segments = torch.arange(len(lengths)).repeat_interleave(lengths).to(self.device)

            def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                seen = (segments[query] == segments[key]) & (key <= query)
                return seen if window is None else seen & (query - key < window)

            total = sum(self.segment_lengths)
            self._block_masks[window] = create_block_mask(visible, None, None, total, total, device=str(self.device))
        return self._block_masks[window]


def check_attention_layers(config: PretrainedConfig) -> None:
    """Refuse a language model with a layer that this interface cannot serve.

    Raises:
        ValueError: Naming the layer and its kind (linear attention, state space, chunked, ...).
    """
    layer_types = getattr(config, "layer_types", None) or []
    for index, kind in enumerate(layer_types):
        if kind not in _SERVED_LAYER_TYPES:
            served = sorted(_SERVED_LAYER_TYPES)
            raise ValueError(f"{config.model_type} layer {index}: expected attention of {served}, got '{kind}'")


def switchyard_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over a pack (``packing`` given) or over a padded batch with a cache.

    Args:
        module: The attention layer.
        query: (B, heads, T, d).
        key: (B, key-value heads, S, d).
        value: (B, key-value heads, S, d).
        attention_mask: Boolean (B, 1, T, S) for a padded batch, None where causality says all.
        scaling: Factor of the scores; 1/√d by default.
        dropout: Probability of dropping an attention weight.
        sliding_window: A position sees itself and the ``sliding_window - 1`` before it.
        softcap: Scores become ``softcap · tanh(score / softcap)``.
        s_aux: (heads,) attention sinks: one more logit in the softmax's denominator.
        packing: The pack's segments.
        **kwargs: Other arguments of transformers, not needed here.

    Returns:
        (B, T, heads, d) and None for the weights.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if packing is None:
        if softcap is None and s_aux is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )
        mask = attention_mask
        if mask is None:
            mask = _window_mask(query.shape[2], key.shape[2], sliding_window, query.device)
        attended = _explicit_attention(query, key, value, mask, scaling, dropout, softcap, s_aux)
        return attended.transpose(1, 2), None
    packing.num_attention_calls += 1
    half = query.dtype in (torch.float16, torch.bfloat16)
    if query.is_cuda and dropout == 0.0:
        if half and softcap is None and s_aux is None:
            return _varlen_attention(query, key, value, packing, scaling, sliding_window), None
        return flex_packed(query, key, value, packing, scaling, sliding_window, softcap, s_aux), None
    if query.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # In bf16 the CPU's fused kernel takes seven times as long in its backward, and loses digits on the way.
        with torch.autocast("cpu", enabled=False):
            q, k, v = query.float(), key.float(), value.float()
            return _per_segment(q, k, v, packing, scaling, dropout, sliding_window, softcap, s_aux), None
    return _per_segment(query, key, value, packing, scaling, dropout, sliding_window, softcap, s_aux), None


def _per_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    scaling: float,
    dropout: float,
    sliding_window: int | None,
    softcap: float | None,
    s_aux: Tensor | None,
) -> Tensor:
    outputs = []
    lengths = packing.segment_lengths
    # split, not slices: its backward is one concatenation instead of a full-width gradient per segment
    for q, k, v in zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True):
        window = sliding_window if sliding_window is not None and sliding_window < q.shape[2] else None
        if softcap is None and s_aux is None:
            mask = None if window is None else _window_mask(q.shape[2], q.shape[2], window, q.device)
            enable_gqa = q.shape[1] != k.shape[1]
            attended = F.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=enable_gqa
            )
        else:
            mask = _window_mask(q.shape[2], q.shape[2], window, q.device)
            attended = _explicit_attention(q, k, v, mask, scaling, dropout, softcap, s_aux)
        outputs.append(attended)
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float, sliding_window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = packing.cumulative_lengths, max(packing.segment_lengths)
    left = -1 if sliding_window is None else sliding_window - 1
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (T, heads, d)
    attended = varlen_attn(
        q,
        k,
        v,
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(left, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(attended, Tensor)
    return attended[None]


def flex_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention over a pack by Flex attention; arguments and result as of :func:`switchyard_attention`.

    A sink takes its share of every row after the fact: the weights that were normalised without it shrink by
    ``exp(l) / (exp(l) + exp(sink))``, with l the logarithm of the row's denominator.
    """
    from torch.nn.attention.flex_attention import AuxRequest

    def capped(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        assert softcap is not None
        return torch.tanh(score / softcap) * softcap

    attended, aux = _flex(query.is_cuda)(
        query,
        key,
        value,
        score_mod=None if softcap is None else capped,
        block_mask=packing.block_mask(sliding_window),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    if sinks is not None:
        share = torch.sigmoid(aux.lse - sinks.float().reshape(1, -1, 1))
        attended = attended * share.to(attended.dtype).unsqueeze(-1)
    return attended.transpose(1, 2)


@cache
def _flex(compiled: bool) -> Any:
    """Flex attention; a kernel of its own where it is compiled, explicit scores where it is not."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention


def _window_mask(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """(queries, keys) boolean causal mask; the queries are the last positions of the keys."""
    rows = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    columns = torch.arange(num_keys, device=device)[None]
    mask = columns <= rows
    return mask if window is None else mask & (columns > rows - window)


def _explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        column = sinks.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat([scores, column.to(scores.dtype)], dim=-1)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    return F.dropout(weights, dropout) @ value


AttentionInterface.register(ATTENTION_NAME, switchyard_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
