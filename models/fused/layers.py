"""The layers of a decoder as fused decoding reads them: the model's own parameters, those of one input side by side.

Nothing is copied for good. The matrices that read the same input (queries, keys and values; gate and up) are moved next
to each other once, and the model's parameters become views of the result: what changes them later, be it an optimizer,
a merge or a checkpoint, changes what is read here, and no memory is taken twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUTanh, SiLUActivation

from models.language import LanguageModel

FUSED_ARCHITECTURES = {
    "gemma3_text": "Gemma3",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
}
"""transformers' model type -> how the names of its classes begin."""
_ACTIVATIONS: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    SiLUActivation: F.silu,
    nn.SiLU: F.silu,
    GELUTanh: partial(F.gelu, approximate="tanh"),
}


_MOVING = threading.Lock()  # sessions of several threads may share a model


class CannotFuse(ValueError):
    """Why a language model's layers cannot be read here."""


@dataclass(frozen=True)
class Norm:
    """RMS norm, rounded as the architecture rounds it.

    Args:
        weight: (d,) the factors.
        eps: Added to the mean square.
        rounds_first: In half precision, whether what is normalised is rounded before it is multiplied by the weight
            (Llama), or after (Gemma, whose weights are in float32 here).
    """

    weight: Tensor
    eps: float
    rounds_first: bool
    _eps: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_eps", torch.tensor([self.eps], device=self.weight.device))

    def __call__(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        shape = self.weight.shape
        if x.dtype == torch.float32 and not x.is_cuda:  # half as many operations as torch's, which is not fused there
            lengths = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            factors = torch.addcmul(self._eps, lengths, lengths, value=1 / shape[0]).rsqrt_()
            return (x * factors).mul_(self.weight)
        if not self.rounds_first:
            return F.rms_norm(x.float(), shape, self.weight, self.eps).to(x.dtype)
        if x.is_cuda:
            return F.rms_norm(x, shape, self.weight, self.eps)
        return F.rms_norm(x.float(), shape, None, self.eps).to(x.dtype).mul_(self.weight)


@dataclass(frozen=True)
class Linear:
    """A matrix (out, in), and a bias (out,) or None."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class FusedLayer:
    """One layer: attention and a gated feed-forward network, each added to what it reads.

    Args:
        attention_norm: Before attention.
        qkv: Queries, keys and values in one matrix.
        query_norm: Of each head's query, where the architecture has it.
        key_norm: Likewise.
        attention_out: What attention gives, back to the width of the model.
        attention_out_norm: After it, where the architecture has it.
        feed_norm: Before the feed-forward network.
        gate_up: Its two input matrices in one.
        activation: Of the gate.
        down: Its output matrix.
        feed_out_norm: After it, where the architecture has it.
        rope: Which table of rotary positions; None where the layer knows no positions.
        window: A position sees itself and the ``window - 1`` before it; None sees all.
        scale: Of the attention scores.
    """

    attention_norm: Norm
    qkv: Linear
    query_norm: Norm | None
    key_norm: Norm | None
    attention_out: Linear
    attention_out_norm: Norm | None
    feed_norm: Norm
    gate_up: Linear
    activation: Callable[[Tensor], Tensor]
    down: Linear
    feed_out_norm: Norm | None
    rope: str | None
    window: int | None
    scale: float


def fuse(language_model: LanguageModel) -> tuple[list[FusedLayer], Norm]:
    """The layers of a language model, and its last norm.

    Args:
        language_model: Its parameters of one input move next to each other in memory, if they are not there yet.

    Raises:
        CannotFuse: If it is none of :data:`FUSED_ARCHITECTURES`, or something stands between its layers (adapters,
            quantised weights, hooks), or its parameters are sharded.
    """
    config, base = language_model.config, language_model.model.base_model
    if config.model_type not in FUSED_ARCHITECTURES:
        known = ", ".join(FUSED_ARCHITECTURES)
        raise CannotFuse(f"the fused loop knows {known}; the language model is a '{config.model_type}'")
    _check_modules(language_model, base)
    _check_parameters(base)
    _check_config(config, base)
    with _MOVING:
        layers = [_fused_layer(config, number, layer) for number, layer in enumerate(_layers(config, base))]
    return layers, _norm(config, base.norm)


def _layers(config: Any, base: Any) -> Sequence[Any]:
    layers: Sequence[Any] = base.layers[: config.num_hidden_layers]
    return layers


def _check_modules(language_model: LanguageModel, base: nn.Module) -> None:
    prefix = FUSED_ARCHITECTURES[language_model.config.model_type]
    folder = prefix.lower()
    home = f"transformers.models.{folder}.modeling_{folder}"
    embedding = language_model.model.get_input_embeddings()
    plain = {nn.Linear, nn.ModuleList, *_ACTIVATIONS}
    for name, module in base.named_modules():
        kind = type(module)
        if module is embedding:
            continue
        if kind not in plain and not (kind.__module__ == home and kind.__name__.startswith(prefix)):
            raise CannotFuse(f"'{name}' is a {kind.__module__}.{kind.__name__}, which is not the architecture's own")
        watched = [hook for hook in module._forward_hooks.values() if not _sleeps(hook)]
        if watched or module._forward_pre_hooks or "forward" in vars(module):
            raise CannotFuse(f"something watches or replaces what '{name or 'the decoder'}' computes")


def _sleeps(hook: Any) -> bool:
    """Whether a hook is transformers' own, which stays once it was needed and does nothing until it is again."""
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"


def _check_parameters(base: Any) -> None:
    like = base.norm.weight
    for part in (base.layers, base.norm):
        for name, parameter in part.named_parameters():
            if type(parameter.data) is not Tensor or parameter.is_inference() or parameter.is_meta:
                raise CannotFuse(f"the parameter '{name}' is sharded, or made in inference mode")
            if (parameter.dtype, parameter.device) != (like.dtype, like.device):
                expected, got = (f"{item.dtype} on {item.device}" for item in (like, parameter))
                raise CannotFuse(f"the parameter '{name}' is {got}, others are {expected}")
    if torch.is_autocast_enabled(like.device.type):
        raise CannotFuse("autocast is on, which chooses a type for every operation")


def _check_config(config: Any, base: Any) -> None:
    types = base.rotary_emb.rope_type
    for kind in types.values() if isinstance(types, dict) else [types]:
        if "dynamic" in kind or kind == "longrope":
            raise CannotFuse(f"rotary positions of type '{kind}' change with the length")
    if getattr(config, "use_bidirectional_attention", False):
        raise CannotFuse("attention is not causal")
    for layer in _layers(config, base):
        if type(layer.mlp.act_fn) not in _ACTIVATIONS:
            raise CannotFuse(f"the activation is a {type(layer.mlp.act_fn).__name__}")


def _fused_layer(config: Any, number: int, layer: Any) -> FusedLayer:
    attention, feed = layer.self_attn, layer.mlp
    sandwiched = hasattr(layer, "pre_feedforward_layernorm")
    kinds = getattr(config, "layer_types", None)
    sliding = kinds[number] == "sliding_attention" if kinds else True
    return FusedLayer(
        attention_norm=_norm(config, layer.input_layernorm),
        qkv=_side_by_side(attention.q_proj, attention.k_proj, attention.v_proj),
        query_norm=_norm(config, attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=_norm(config, attention.k_norm) if hasattr(attention, "k_norm") else None,
        attention_out=_alone(attention.o_proj),
        attention_out_norm=_norm(config, layer.post_attention_layernorm) if sandwiched else None,
        feed_norm=_norm(config, layer.pre_feedforward_layernorm if sandwiched else layer.post_attention_layernorm),
        gate_up=_side_by_side(feed.gate_proj, feed.up_proj),
        activation=_ACTIVATIONS[type(feed.act_fn)],
        down=_alone(feed.down_proj),
        feed_out_norm=_norm(config, layer.post_feedforward_layernorm) if sandwiched else None,
        rope=(kinds[number] if kinds else "all") if getattr(attention, "use_rope", True) else None,
        window=getattr(config, "sliding_window", None) if sliding else None,
        scale=attention.scaling,
    )


def rope_tables(language_model: LanguageModel, length: int, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """Cosines and sines (length, head size) of every kind of layer, the sines with the signs of a half turn.

    With them ``x · cos + roll(x, half) · sin`` is ``x · cos + rotate_half(x) · sin`` of transformers, to the bit.
    """
    rotary, config = language_model.model.base_model.rotary_emb, language_model.config
    device = language_model.head_weight.device
    like, positions = torch.empty(0, dtype=dtype, device=device), torch.arange(length, device=device)[None]
    kinds = sorted(set(getattr(config, "layer_types", None) or ["all"]))
    by_kind = isinstance(rotary.rope_type, dict)
    tables = {}
    for kind in kinds:
        cosines, sines = rotary(like, positions, kind) if by_kind else rotary(like, positions)
        half = sines.shape[-1] // 2
        tables[kind] = cosines[0], torch.cat([-sines[0, :, :half], sines[0, :, half:]], dim=-1)
    return tables


def _norm(config: Any, module: Any) -> Norm:
    if config.model_type == "gemma3_text":
        return Norm(1.0 + module.weight.float(), config.rms_norm_eps, rounds_first=False)
    return Norm(module.weight, config.rms_norm_eps, rounds_first=True)


def _alone(module: nn.Linear) -> Linear:
    return Linear(module.weight, module.bias)


def _side_by_side(*modules: nn.Linear) -> Linear:
    biases = [module.bias for module in modules]
    if any((bias is None) != (biases[0] is None) for bias in biases):
        raise CannotFuse("some matrices of one input have a bias, others have none")
    bias = None if biases[0] is None else _adjoining(biases)
    weights: list[Any] = [module.weight for module in modules]
    return Linear(_adjoining(weights), bias)


def _adjoining(parts: Sequence[nn.Parameter]) -> Tensor:
    """One tensor of all rows of some parameters, which it shares its memory with."""
    if not _adjoin(parts):
        for part in parts:
            if not part.is_contiguous() or part.untyped_storage().nbytes() != part.nbytes:
                raise CannotFuse("a parameter is a part of somebody's larger buffer")
        with torch.inference_mode(False), torch.no_grad():
            whole = torch.cat([part.detach() for part in parts])
            for part, rows in zip(parts, whole.split([len(part) for part in parts]), strict=True):
                part.data = rows
    first, length = parts[0].detach(), sum(len(part) for part in parts)
    return first.as_strided((length, *first.shape[1:]), first.stride())


def _adjoin(parts: Sequence[nn.Parameter]) -> bool:
    """Whether each parameter begins in memory where the one before it ends."""
    storage = parts[0].untyped_storage().data_ptr()
    same = all(part.untyped_storage().data_ptr() == storage and part.is_contiguous() for part in parts)
    return same and all(part.data_ptr() == end for part, end in zip(parts, _ends(parts), strict=True))


def _ends(parts: Sequence[nn.Parameter]) -> Iterator[int]:
    end = parts[0].data_ptr()
    for part in parts:
        yield end
        end += part.nbytes
