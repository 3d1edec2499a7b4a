"""Projectors with learned queries: an item, or each window of it, becomes a fixed number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from layers.layout import Layout
from models.projectors.projector import Projector, QueryRule


class PerceiverResampler(Projector):
    """Latents that read an item in several layers (Flamingo, https://arxiv.org/abs/2204.14198), as in Idefics2.

    Args:
        input_size: Width of the encoder's features.
        output_size: Width of the language model.
        num_queries: Tokens per item.
        num_layers: Layers.
        num_heads: Attention heads; they must divide ``output_size``.
    """

    def __init__(
        self, input_size: int, output_size: int, num_queries: int = 64, num_layers: int = 3, num_heads: int = 8
    ) -> None:
        # Here and below: data workers import this module for its token rules, and the models take a second.
        from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
        from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler

        super().__init__()
        _check_heads(output_size, num_heads)
        self.token_rule = QueryRule(num_queries=num_queries)
        self.input = nn.Sequential(nn.LayerNorm(input_size), nn.Linear(input_size, output_size))
        config = Idefics2PerceiverConfig(
            hidden_size=output_size,
            resampler_n_latents=num_queries,
            resampler_depth=num_layers,
            resampler_n_heads=num_heads,
            resampler_head_dim=output_size // num_heads,
            num_key_value_heads=num_heads,
        )
        config._attn_implementation = "sdpa"
        self.resampler = Idefics2PerceiverResampler(config)
        nn.init.normal_(self.resampler.latents, std=0.02)  # equal latents would stay equal

    def forward(self, hidden_states: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        """Read every item with the same latents."""
        padded, valid = pad(layout.split(self.input(hidden_states)))
        tokens = self.resampler(padded, valid.long())
        return tokens.flatten(0, 1), self.projected(layout)


class QFormerProjector(Projector):
    """Queries that read an item, or each window of it, through a Q-Former, then a linear layer.

    Over whole items as in BLIP-2 (https://arxiv.org/abs/2301.12597); over windows of speech as in SALMONN
    (https://arxiv.org/abs/2310.13289), so that the tokens grow with the clip.

    Args:
        input_size: Width of the encoder's features.
        output_size: Width of the language model.
        num_queries: Tokens per item or window.
        window: Features per window; None takes the item as a whole.
        hidden_size: Width of the Q-Former.
        num_layers: Its layers, each with self-attention and cross-attention.
        num_heads: Attention heads; they must divide ``hidden_size``.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_queries: int = 32,
        window: int | None = None,
        hidden_size: int = 768,
        num_layers: int = 2,
        num_heads: int = 12,
    ) -> None:
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        super().__init__()
        _check_heads(hidden_size, num_heads)
        self.token_rule = QueryRule(num_queries=num_queries, window=window)
        self.norm = nn.LayerNorm(input_size)
        self.queries = nn.Parameter(torch.randn(num_queries, hidden_size) * 0.02)
        config = Blip2QFormerConfig(
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            intermediate_size=4 * hidden_size,
            encoder_hidden_size=input_size,
            cross_attention_frequency=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.qformer = Blip2QFormerModel(config)
        self.output = nn.Sequential(nn.Linear(hidden_size, output_size), nn.RMSNorm(output_size))

    def forward(self, hidden_states: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        """Read every window with the same queries."""
        rule = self.token_rule
        assert isinstance(rule, QueryRule)
        items = layout.split(self.norm(hidden_states))
        windows = [part for item in items for part in (item.split(rule.window) if rule.window else (item,))]
        padded, valid = pad(windows)
        states = self.qformer(
            query_embeds=self.queries.expand(len(windows), -1, -1),
            encoder_hidden_states=padded,
            encoder_attention_mask=valid.long(),
        ).last_hidden_state
        return self.output(states.to(hidden_states.dtype)).flatten(0, 1), self.projected(layout)


def pad(items: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(N, d) each to (M, longest, d), zero-padded, and which places are theirs (M, longest)."""
    lengths = torch.tensor([len(item) for item in items], device=items[0].device)
    padded = nn.utils.rnn.pad_sequence(list(items), batch_first=True)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]


def _check_heads(size: int, num_heads: int) -> None:
    if size % num_heads:
        raise ValueError(f"num_heads: expected a divisor of the width {size}, got {num_heads}")
