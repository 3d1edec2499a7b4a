"""Any causal language model of transformers, over packs and over a key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.cache_utils import Cache

from layers.pretrained import architecture, load_pretrained
from models.adapters.conditioned_experts import ConditionedExperts, Situations, add_conditioned_experts
from models.adapters.lora import Lora, add_lora
from models.adapters.lora_experts import LoraExperts, add_experts
from models.adapters.prompt_gate import GatedUpdates, GateNetwork, Gates, PromptGate
from models.adapters.quantization import Quantization, quantized
from models.attention import ATTENTION_NAME, Packing, check_attention_layers
from models.token_loss import linear_cross_entropy
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
        lora: Low-rank updates beside frozen weights: arguments of :class:`models.adapters.lora.Lora`.
        prompt_gate: A gate by the instruction on those updates: arguments of
            :class:`models.adapters.prompt_gate.PromptGate`.
        lora_experts: Instead of ``lora``, mixtures of updates: arguments of
            :class:`models.adapters.lora_experts.LoraExperts`.
        conditioned_experts: Mixtures of whole layers by what a token is: arguments of
            :class:`models.adapters.conditioned_experts.ConditionedExperts`; not beside updates.
        quantization: Of the frozen weights of ``pretrained``: arguments of
            :class:`models.adapters.quantization.Quantization`.

    Raises:
        ValueError: If a layer's attention cannot be served (named), or neither ``model_type`` nor ``pretrained`` is
            given, or adapters do not go together.
    """

    new_tokens: TokenRows | None
    gate: GateNetwork | None

    def __init__(
        self,
        model_type: str | None = None,
        config: dict[str, Any] | None = None,
        pretrained: str | None = None,
        revision: str | None = None,
        new_tokens: dict[str, int] | None = None,
        lora: Lora | None = None,
        prompt_gate: PromptGate | None = None,
        lora_experts: LoraExperts | None = None,
        conditioned_experts: ConditionedExperts | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        super().__init__()
        overrides = dict(config or {})
        if pretrained is not None:
            hf_config = AutoConfig.from_pretrained(pretrained, revision=revision, trust_remote_code=False, **overrides)
        elif model_type is not None:
            hf_config = architecture(model_type, overrides)
        else:
            raise ValueError("expected model_type (with config) or pretrained, got neither")
        check_attention_layers(hf_config)
        arguments: dict[str, Any] = {"attn_implementation": ATTENTION_NAME}
        if pretrained is not None:
            arguments |= {"revision": revision, **quantized(quantization)}
            model = load_pretrained(AutoModelForCausalLM, pretrained, hf_config, **arguments)
        elif quantization is not None:
            raise ValueError("quantization: expected pretrained, whose weights it stores in four bits, got none")
        else:
            model = AutoModelForCausalLM.from_config(hf_config, trust_remote_code=False, **arguments)
        if quantization is not None and lora is None:
            raise ValueError(
                "quantization: expected lora beside it, since weights in four bits are not trained, got none"
            )
        self.model = model
        self.quantization = quantization
        self.bases: Mapping[str, str] = {} if pretrained is None else {"model.": pretrained}
        self._add_adapters(lora, prompt_gate, lora_experts)
        self.situations: Situations | None = None
        if conditioned_experts is not None:
            if lora is not None or lora_experts is not None:
                raise ValueError("conditioned_experts: expected no low-rank updates beside them, got some")
            self.situations = add_conditioned_experts(self.model, conditioned_experts)
        self.new_tokens = None
        if new_tokens is not None:
            tied = self.head_weight is self._embedding.weight or bool(hf_config.tie_word_embeddings)
            output = None if tied else self.head_weight
            self.new_tokens = TokenRows(new_tokens["first"], new_tokens["count"], self._embedding.weight, output)

    def _add_adapters(self, lora: Lora | None, prompt_gate: PromptGate | None, experts: LoraExperts | None) -> None:
        if lora is not None and experts is not None:
            raise ValueError("expected lora or lora_experts, got both")
        if prompt_gate is not None and lora is None:
            raise ValueError("prompt_gate: expected lora beside it, whose updates it weighs, got none")
        self.gate, self.balance_weight = None, 0.0
        if lora is not None:
            add_lora(self.model, lora)
        if experts is not None:
            add_experts(self.model, experts)
            self.balance_weight = experts.balance_weight
        if prompt_gate is not None:
            width, heads = self.config.hidden_size, self.config.num_attention_heads
            head_size = getattr(self.config, "head_dim", None) or width // heads
            self._updates = GatedUpdates(self.model, head_size if prompt_gate.interleaved else None)
            self.gate = GateNetwork(width, self._updates.widths, prompt_gate)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As of every module, but frequencies of rotary positions stay in float32, as transformers loads them."""
        exact = [
            (module._buffers, name, buffer)
            for module in self.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and name.endswith("inv_freq") and buffer.dtype == torch.float32
        ]
        super()._apply(fn, recurse)
        for buffers, name, buffer in exact:
            moved = buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                buffers[name] = buffer.to(moved.device)
        return self

    @property
    def config(self) -> PretrainedConfig:
        """The configuration that transformers built."""
        return self.model.config

    @property
    def hidden_size(self) -> int:
        """Width of the embeddings, and of the states after the final norm; layers within may be wider (OPT-350m)."""
        return int(self._embedding.weight.shape[1])

    @property
    def vocab_size(self) -> int:
        """Ids that have a row."""
        if self.new_tokens is not None:
            return self.new_tokens.first + self.new_tokens.count
        return self._embedding.weight.shape[0]

    @property
    def max_positions(self) -> int | None:
        """Positions that the architecture knows, where it says so."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def has_windows(self) -> bool:
        """Whether some layer forgets what lies far back (sliding windows)."""
        layer_types = getattr(self.config, "layer_types", None)
        if layer_types:
            return any(kind != "full_attention" for kind in layer_types)
        return getattr(self.config, "sliding_window", None) is not None

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

    def gates(self, instructions: Sequence[Tensor]) -> Gates | None:
        """The gates of samples; None where this model has no prompt gate.

        Args:
            instructions: (L,) ids of each sample's instruction, in quotes (:data:`models.adapters.prompt_gate.QUOTED`).
        """
        if self.gate is None:
            return None
        lengths = [len(instruction) for instruction in instructions]
        caught: list[Tensor] = []
        with torch.no_grad():
            ids = torch.cat(list(instructions))[None]
            positions = torch.cat([torch.arange(length, device=ids.device) for length in lengths])[None]
            hook = self.blocks[-1].register_forward_hook(
                lambda module, inputs, output: caught.append(output[0] if isinstance(output, tuple) else output)
            )
            self._updates.use(None)
            try:
                self._packed(self.embed(ids), positions, lengths)
            finally:
                hook.remove()
        return self.gate(torch.cat(caught, dim=1)[0], lengths)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder's layers, in order."""
        lists = [module for module in self.model.base_model.modules() if isinstance(module, nn.ModuleList)]
        return next(module for module in lists if len(module) == self.config.num_hidden_layers)

    def _use(
        self,
        gates: Gates | None,
        values: Callable[[Gates], dict[int, Tensor]],
        situations: Tensor | None,
        inputs_embeds: Tensor,
    ) -> None:
        for given, part, name in (
            (gates, self.gate, "gates of the instructions"),
            (situations, self.situations, "situations of the tokens"),
        ):
            if (given is None) != (part is None):
                expected, got = (f"no {name}", "some") if part is None else (name, "none")
                raise ValueError(f"language model: expected {expected}, got {got}")
        if gates is not None:
            self._updates.use(values(gates))
        if situations is not None and self.situations is not None:
            if situations.shape != inputs_embeds.shape[:2]:
                expected_size, size = tuple(inputs_embeds.shape[:2]), tuple(situations.shape)
                raise ValueError(f"language model: expected situations {expected_size}, got {size}")
            self.situations.use(situations)

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        segment_lengths: list[int],
        gates: Gates | None = None,
        situations: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of a pack.

        Args:
            inputs_embeds: (1, T, d).
            position_ids: (1, T), restarting per segment.
            segment_lengths: Tokens per segment.
            gates: What :meth:`gates` returned for the segments' instructions.
            situations: (1, T) of the tokens, as indices, where the model has conditioned experts.

        Returns:
            (T, d) states after the final norm.

        Raises:
            ValueError: If the segments do not fill the row, the architecture did not hand the segments to its
                attention, or what the model is conditioned on is missing.
        """
        self._use(gates, lambda given: given.per_token(segment_lengths), situations, inputs_embeds)
        return self._packed(inputs_embeds, position_ids, segment_lengths)

    def _packed(self, inputs_embeds: Tensor, position_ids: Tensor, segment_lengths: list[int]) -> Tensor:
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
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        cache: Cache | None,
        gates: Gates | None = None,
        situations: Tensor | None = None,
    ) -> CachedOutput:
        """Hidden states of new tokens given a cache of earlier ones.

        Args:
            inputs_embeds: (B, S, d) embeddings of the new tokens, left-padded on the first call.
            attention_mask: (B, past + S), 0 at padding.
            position_ids: (B, S).
            cache: What the last call returned, or None.
            gates: Of the rows' instructions, where the model has a prompt gate.
            situations: (B, S) of the new tokens, where the model has conditioned experts.
        """
        self._use(gates, Gates.per_row, situations, inputs_embeds)
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
        rows = self.new_tokens
        new, known = (None, None) if rows is None else (rows.output_rows, rows.first)
        return linear_cross_entropy(states, self.head_weight, targets, self.head_bias, self._softcap, new, known)

    @property
    def _softcap(self) -> float | None:
        return getattr(self.config, "final_logit_softcapping", None)
