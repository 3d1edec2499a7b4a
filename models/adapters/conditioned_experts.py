"""Uni-Perceiver's conditional mixture of experts: what a token is, and not what it says, chooses its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEXT, CALL = "text", "call"
"""Situations of tokens that are no placeholder of a medium: words, and control tokens of task calls."""
SITUATIONS: Mapping[str, Sequence[int]] = {
    TEXT: (1, 0, 0, 0, 0, 1),
    CALL: (0, 1, 0, 0, 0, 1),
    "image": (0, 0, 1, 0, 0, 0),
    "audio": (0, 0, 0, 1, 0, 0),
    "graph": (0, 0, 0, 0, 1, 0),
}
"""Attributes: words, calls, images, audio, graphs; and whether a reply can hold such tokens."""


@dataclass
class ConditionedExperts:
    """A mixture over whole linear layers, ``y = Σ_e g(a)_e (W_e x + b_e)``, a being attributes of the token.

    Uni-Perceiver v2 (https://arxiv.org/abs/2211.09808) puts it on every feed-forward layer; in its predecessor's code
    two of eight experts take part, and ``g`` is a softmax over the two largest of ``W₂ LayerNorm(W₁ a)``. Since ``g``
    knows nothing of x, the mixture is one dense layer per situation of a token: so it is computed, and that is what
    remains of it at inference. Experts begin as copies of the layer, so that a pretrained model begins as it is.

    Args:
        num_experts: E.
        top_k: How many take part.
        hidden_size: Width of the gate's hidden layer.
        targets: Ends of the names of the linear layers that become mixtures.
        situations: Situation -> its attributes; every one of :data:`SITUATIONS`.
    """

    num_experts: int = 8
    top_k: int = 2
    hidden_size: int = 32
    targets: Sequence[str] = ("gate_proj", "up_proj", "down_proj")
    situations: dict[str, list[int]] = field(default_factory=lambda: {name: list(a) for name, a in SITUATIONS.items()})


class ConditionedLinear(nn.Module):
    """A linear layer per situation, mixed of experts; see :class:`ConditionedExperts`.

    Args:
        layer: The layer that every expert begins as.
        experts: Which experts.
        reader: Knows the situations of the tokens at hand.
    """

    def __init__(self, layer: nn.Linear, experts: ConditionedExperts, reader: Situations) -> None:
        super().__init__()
        self.top_k, self._reader = experts.top_k, [reader]  # in a list: the reader is no part of this module
        weight, attributes = layer.weight, len(next(iter(experts.situations.values())))
        self.weight = nn.Parameter(weight.detach().expand(experts.num_experts, -1, -1).clone())  # (E, out, in)
        bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().expand(experts.num_experts, -1).clone())
        self.bias = bias
        self.gate = nn.Sequential(
            nn.Linear(attributes, experts.hidden_size),
            nn.LayerNorm(experts.hidden_size),
            nn.Linear(experts.hidden_size, experts.num_experts),
        ).to(weight)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def mixture(self, attributes: Tensor) -> Tensor:
        """(A, attributes) -> (A, E) weights of the experts, all but ``top_k`` of them zero."""
        scores = self.gate(attributes.to(self.weight.dtype)).float()
        best = scores.topk(min(self.top_k, scores.shape[-1]), dim=-1)
        return torch.zeros_like(scores).scatter(-1, best.indices, best.values.softmax(-1))

    def dense(self, attributes: Tensor) -> tuple[Tensor, Tensor | None]:
        """The layers of situations (A, attributes): (A, out, in), and (A, out) or None."""
        mixture = self.mixture(attributes).to(self.weight.dtype)
        bias = None if self.bias is None else mixture @ self.bias
        return torch.einsum("ae,eoi->aoi", mixture, self.weight), bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), each token by the layer of its situation."""
        (reader,) = self._reader
        weights, biases = self.dense(reader.attributes)
        if len(reader.present) == 1:
            return F.linear(x, weights[0], None if biases is None else biases[0])
        outputs = x.new_zeros(*x.shape[:-1], self.out_features)
        for place, positions in enumerate(reader.positions):
            own = F.linear(x.flatten(0, -2)[positions], weights[place], None if biases is None else biases[place])
            outputs.view(-1, self.out_features).index_copy_(0, positions, own.to(outputs.dtype))
        return outputs


class Situations:
    """The situations of the tokens that go through a model, for its conditioned layers.

    Args:
        experts: With the attributes of every situation.

    Raises:
        ValueError: If a situation is missing or unknown, or has other attributes in number or than 0 and 1.
    """

    def __init__(self, experts: ConditionedExperts) -> None:
        given = experts.situations
        if set(given) != set(SITUATIONS):
            raise ValueError(f"conditioned_experts.situations: expected {sorted(SITUATIONS)}, got {sorted(given)}")
        if len({len(bits) for bits in given.values()}) != 1 or not {bit for a in given.values() for bit in a} <= {0, 1}:
            raise ValueError(f"conditioned_experts.situations: expected lists of 0 and 1 of one length, got {given}")
        self.names = tuple(given)
        table = [list(bits) for bits in given.values()]
        self._table = torch.tensor(table, dtype=torch.float32, device="cpu")  # with values on the meta device too
        self.present: list[int] = []
        self.positions: list[Tensor] = []
        self.attributes = self._table[:0]

    def use(self, situations: Tensor) -> None:
        """Take the situations (B, S) of the tokens of the next forward, as indices into :attr:`names`."""
        flat = situations.flatten()
        self.present = flat.unique().tolist()
        self.positions = [(flat == index).nonzero()[:, 0] for index in self.present]
        self.attributes = self._table[self.present].to(situations.device)

    def of_tokens(self, size: int, ids: Mapping[str, Sequence[int]]) -> Tensor:
        """(V,) situation of every token id.

        Args:
            size: V.
            ids: Situation -> ids of its tokens; all others are words.
        """
        table = torch.full((size,), self.names.index(TEXT))
        for name, own in ids.items():
            table[list(own)] = self.names.index(name)
        return table


def add_conditioned_experts(model: nn.Module, experts: ConditionedExperts) -> Situations:
    """Turn linear layers of a model into mixtures.

    Args:
        model: Changed in place; ``*.weight`` and ``*.bias`` get an axis of experts in front, and ``*.gate`` is new.
        experts: Which.

    Returns:
        What has to know the situations of the tokens before every forward.

    Raises:
        ValueError: If no layer has such a name, or a number does not fit.
    """
    if not 1 <= experts.top_k <= experts.num_experts:
        raise ValueError(f"conditioned_experts.top_k: expected 1 to {experts.num_experts} experts, got {experts.top_k}")
    reader = Situations(experts)
    chosen = dict(_linear_layers(model, experts.targets))
    if not chosen:
        raise ValueError(f"conditioned_experts.targets: no linear layer of the model ends in {list(experts.targets)}")
    for name, layer in chosen.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, ConditionedLinear(layer, experts, reader))
    return reader


def merge_conditioned_experts(model: nn.Module, situation: str) -> int:
    """Leave of every mixture the dense layer of one situation; returns how many there were.

    The model then takes tokens of that situation alone, such as a model of text, at the cost of a dense one.

    Args:
        model: Changed in place.
        situation: One of :data:`SITUATIONS`.

    Raises:
        ValueError: For an unknown situation.
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, ConditionedLinear)]
    for name, module in found:
        (reader,) = module._reader
        if situation not in reader.names:
            raise ValueError(f"situation: expected one of {sorted(reader.names)}, got '{situation}'")
        index = reader.names.index(situation)
        with torch.no_grad():
            weights, biases = module.dense(reader._table[index : index + 1].to(module.weight.device))
        layer = nn.Linear(module.in_features, module.out_features, bias=biases is not None).to(module.weight)
        layer.weight = nn.Parameter(weights[0])
        if biases is not None:
            layer.bias = nn.Parameter(biases[0])
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    return len(found)


def _linear_layers(model: nn.Module, targets: Sequence[str]) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in targets:
            yield name, module
