"""WavLLM's prompt-aware gate: the instruction decides how strongly every output of the low-rank updates counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

QUOTED = '"{}"'
"""How the gate is given an instruction: in quotes, so that an empty one is not nothing."""


@dataclass
class PromptGate:
    """A gate on low-rank updates (https://arxiv.org/abs/2404.00656): ``y = W x + (B A x) ⊙ g(instruction)``.

    Args:
        hidden_size: Width of the gate's first layer.
        limit: Largest value of a gate.
        interleaved: The gates of queries and keys were learned for rotary pairs that lie side by side, as in Meta's
            LLaMA, and are brought to the order of transformers, whose pairs lie half a head apart.
    """

    hidden_size: int = 1024
    limit: float = 3.0
    interleaved: bool = False


@dataclass
class Gates:
    """The gates of some samples.

    Args:
        values: Output width of a linear layer -> (B, width).
    """

    values: dict[int, Tensor]

    def rows(self, index: Tensor) -> Gates:
        """Those of some of the samples."""
        return Gates({width: value[index] for width, value in self.values.items()})

    def per_token(self, segment_lengths: Sequence[int]) -> dict[int, Tensor]:
        """Width -> (1, T, width) for a pack whose segments are the samples."""
        return {
            width: value.repeat_interleave(torch.tensor(list(segment_lengths), device=value.device), dim=0)[None]
            for width, value in self.values.items()
        }

    def per_row(self) -> dict[int, Tensor]:
        """Width -> (B, 1, width) for a batch with a row per sample."""
        return {width: value[:, None] for width, value in self.values.items()}


class GateNetwork(nn.Module):
    """The states of an instruction to one gate per output of each width.

    ``S = W2 GELU(W1 H)``, ``v = Σ_t softmax(w·S)_t S_t`` over the instruction's own positions, and
    ``g = min(ReLU(v), limit)``. WavLLM has one output as wide as the model; grouped-query attention and feed-forward
    layers have other widths, so that there is one W2 and one w per width. W2 begins with weights of zero and biases of
    one: every gate is 1, and training goes on from the plain updates, where ReLU passes its gradient.

    Args:
        state_size: Width of the states.
        widths: Output widths of the layers that are gated.
        gate: Its settings.
    """

    def __init__(self, state_size: int, widths: Sequence[int], gate: PromptGate) -> None:
        super().__init__()
        self.limit = gate.limit
        self.first = nn.Sequential(nn.Linear(state_size, gate.hidden_size), nn.GELU())
        self.second = nn.ModuleDict({str(width): nn.Linear(gate.hidden_size, width) for width in widths})
        self.pool = nn.ModuleDict({str(width): nn.Linear(width, 1) for width in widths})
        for layer in self.second.values():
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.ones_(layer.bias)

    def forward(self, states: Tensor, lengths: Sequence[int]) -> Gates:
        """Compute gates.

        Args:
            states: (ΣL, d) states of the instructions, one after the other.
            lengths: Their lengths.
        """
        hidden = self.first(states)
        padded = nn.utils.rnn.pad_sequence(list(hidden.split(list(lengths))), batch_first=True)  # (B, L, h)
        sizes = torch.tensor(list(lengths), device=states.device)
        outside = torch.arange(padded.shape[1], device=states.device) >= sizes[:, None]
        values = {}
        for name, second in self.second.items():
            pieces = second(padded)
            scores = self.pool[name](pieces).squeeze(-1).float().masked_fill(outside, float("-inf"))
            pooled = torch.einsum("bl,blw->bw", scores.softmax(-1).to(pieces.dtype), pieces)
            values[int(name)] = pooled.relu().clamp(max=self.limit)
        return Gates(values)


class GatedUpdates:
    """Multiplies what every low-rank update adds by the gates in force.

    Gates stay in force until others are set: activation checkpointing computes a layer again in the backward pass.

    Args:
        model: A model with peft's low-rank updates.
        head_size: Width of an attention head, where the gates of queries and keys are interleaved.
    """

    def __init__(self, model: nn.Module, head_size: int | None = None) -> None:
        self.head_size = head_size
        self._gates: dict[tuple[int, bool], Tensor] | None = None
        self._kinds = set()
        for name, module in model.named_modules():
            if ".lora_B." in name and isinstance(module, nn.Linear):
                rotary = head_size is not None and any(f".{part}.lora_B." in name for part in ("q_proj", "k_proj"))
                module.register_forward_hook(partial(self._apply, rotary))
                self._kinds.add((module.out_features, rotary))
        self.widths = sorted({width for width, _ in self._kinds})

    def use(self, gates: dict[int, Tensor] | None) -> None:
        """Set the gates, width -> (..., width); None sets all to zero, and the plain model reads."""
        if gates is None:
            self._gates = None
            return
        self._gates = {
            (width, rotary): halves(gates[width], self.head_size) if rotary and self.head_size else gates[width]
            for width, rotary in self._kinds
        }

    def _apply(self, rotary: bool, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if self._gates is None:
            return output * 0
        return output * self._gates[output.shape[-1], rotary].to(output.dtype)


def halves(values: Tensor, head_size: int) -> Tensor:
    """(..., heads · head_size) from rotary pairs side by side to pairs half a head apart."""
    return values.unflatten(-1, (-1, head_size // 2, 2)).transpose(-1, -2).flatten(-3)
