"""Any causal language model of transformers, over packs and over a key-value cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.cache_utils import Cache

from models.adapters import Lora, add_lora
from models.attention import ATTENTION_NAME, Packing, check_attention_layers
from models.token_loss import chunked_cross_entropy, linear_cross_entropy
from models.token_rows import TokenRows


@dataclass
class CachedOutput:
    """What one cached forward returns: (B, S, d) states after the final norm, and the cache."""

    hidden_states: Tensor
    cache: Cache


class LanguageModel(nn.Module):
    """A causal language model of transformers behind one attention interface.

    Args:
        model_type: transformers' name of the architecture, such as ``llama`` or ``qwen3``; not needed with
            ``pretrained``.
        config: Arguments of that architecture's configuration.
        pretrained: A local directory or hub id with safetensors; its configuration is used and ``config`` overrides it.
        revision: Revision on the hub.
        new_tokens: ``{first: ID, count: N}``: tokens that the pretrained vocabulary lacks get rows of their own, named
            ``new_tokens.*``, and the table can stay frozen (``python -m models tokenizer`` prints these numbers).
        lora: Low-rank updates beside frozen weights: arguments of :class:`models.adapters.Lora`.

    Raises:
        ValueError: If a layer's attention cannot be served (named), or neither ``model_type`` nor ``pretrained`` is
            given.
    """

    new_tokens: TokenRows | None

    def __init__(
        self,
        model_type: str | None = None,
        config: dict[str, Any] | None = None,
        pretrained: str | None = None,
        revision: str | None = None,
        new_tokens: dict[str, int] | None = None,
        lora: Lora | None = None,
    ) -> None:
        super().__init__()
        overrides = dict(config or {})
        if pretrained is not None:
            hf_config = AutoConfig.from_pretrained(pretrained, revision=revision, trust_remote_code=False, **overrides)
        elif model_type is not None:
            hf_config = AutoConfig.for_model(model_type, **overrides)
        else:
            raise ValueError("expected model_type (with config) or pretrained, got neither")
        check_attention_layers(hf_config)
        arguments: dict[str, Any] = {"attn_implementation": ATTENTION_NAME, "trust_remote_code": False}
        if pretrained is not None:
            model = AutoModelForCausalLM.from_pretrained(
                pretrained, config=hf_config, revision=revision, use_safetensors=True, **arguments
            )
        else:
            model = AutoModelForCausalLM.from_config(hf_config, **arguments)
        self.model = model
        self.pretrained = str(Path(pretrained)) if pretrained is not None else None
        if lora is not None:
            add_lora(self.model, lora)
        self.new_tokens = None
        if new_tokens is not None:
            tied = self.head_weight.data_ptr() == self._embedding.weight.data_ptr() or bool(
                hf_config.tie_word_embeddings
            )
            output = None if tied else self.head_weight
            self.new_tokens = TokenRows(new_tokens["first"], new_tokens["count"], self._embedding.weight, output)

    @property
    def config(self) -> PretrainedConfig:
        """The configuration that transformers built."""
        return self.model.config

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.config.hidden_size

    @property
    def vocab_size(self) -> int:
        """Ids that have a row."""
        if self.new_tokens is not None:
            return self.new_tokens.first + self.new_tokens.count
        return self._embedding.weight.shape[0]

    @property
    def _embedding(self) -> nn.Embedding:
        embedding = self.model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        return embedding

    @property
    def head_weight(self) -> Tensor:
        """(vocabulary, d) weight of the output layer."""
        return self.model.get_output_embeddings().weight

    @property
    def head_bias(self) -> Tensor | None:
        """Bias of the output layer, where the architecture has one."""
        return getattr(self.model.get_output_embeddings(), "bias", None)

    @property
    def embedding_scale(self) -> float:
        """What the architecture multiplies its embedding rows by (√d in Gemma); learned queries get the same."""
        return float(getattr(self._embedding, "scalar_embed_scale", 1.0))

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings (..., d)."""
        if self.new_tokens is not None:
            return self.new_tokens.embed(input_ids, self._embedding, self.embedding_scale)
        return self._embedding(input_ids)

    def forward(self, inputs_embeds: Tensor, position_ids: Tensor, segment_lengths: list[int]) -> Tensor:
        """Hidden states of a pack.

        Args:
            inputs_embeds: (1, T, d).
            position_ids: (1, T), restarting per segment.
            segment_lengths: Tokens per segment.

        Returns:
            (T, d) states after the final norm.

        Raises:
            ValueError: If the segments do not fill the row, or the architecture did not hand the segments to its
                attention.
        """
        if sum(segment_lengths) != inputs_embeds.shape[1]:
            raise ValueError(f"segments of {sum(segment_lengths)} tokens do not fill a row of {inputs_embeds.shape[1]}")
        packing = Packing(segment_lengths, inputs_embeds.device)
        # A four-dimensional mask is passed through by transformers; our attention reads the segments instead.
        passthrough = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=inputs_embeds.device)
        output = self.model.base_model(
            inputs_embeds=inputs_embeds,
            attention_mask=passthrough,
            position_ids=position_ids,
            use_cache=False,
            packing=packing,
        )
        expected = self.config.num_hidden_layers
        if packing.num_attention_calls < expected:
            raise ValueError(
                f"{self.config.model_type}: expected {expected} attention layers to take part in packing, "
                f"got {packing.num_attention_calls}"
            )
        return output.last_hidden_state[0]

    def forward_cached(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Cache | None
    ) -> CachedOutput:
        """Hidden states of new tokens given a cache of earlier ones.

        Args:
            inputs_embeds: (B, S, d) embeddings of the new tokens, left-padded on the first call.
            attention_mask: (B, past + S), 0 at padding.
            position_ids: (B, S).
            cache: What the last call returned, or None.
        """
        output = self.model.base_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return CachedOutput(output.last_hidden_state, output.past_key_values)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Vocabulary logits (..., vocabulary), soft-capped where the architecture does so."""
        head = self.model.get_output_embeddings()
        logits = head(hidden_states) if self.new_tokens is None else self.new_tokens.logits(hidden_states, head)
        cap = self._softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def cross_entropy(self, states: Tensor, targets: Tensor) -> Tensor:
        """Summed cross-entropy of the states' next tokens, without the logits of all of them at once.

        Args:
            states: (n, d).
            targets: (n,) ids.

        Returns:
            Scalar sum; 0 with a gradient path for n = 0.
        """
        if self.new_tokens is not None:
            return chunked_cross_entropy(states, targets, self.logits)
        return linear_cross_entropy(states, self.head_weight, targets, self.head_bias, self._softcap)

    @property
    def _softcap(self) -> float | None:
        return getattr(self.config, "final_logit_softcapping", None)
