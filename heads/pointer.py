"""A head that answers with some of its inputs: one of N, or a sequence of them with an end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from heads.attend import CrossAttention, masked_mean, pad_ragged, perceptron, required_states
from layers.calls import HeadContext, Result, SelectionResult
from layers.head import Head, HeadTarget, LossTerm
from layers.layout import ItemLayout

Elements = Literal["graph", "image", "audio"]
Score = Literal["additive", "dot"]
ElementEncoder = Literal["attention", "lstm"]
STOP = 0
"""The place of the end symbol among the candidates; input j stands at j + 1."""


class OrderTargetProcessor:
    """Checks the indices of chosen inputs.

    Args:
        media_kind: What they index: the nodes, cells or frames of the latest medium of this kind.
        most: How many may be chosen; with 1, exactly one is.
        repeats: Whether one may be chosen again.
    """

    def __init__(self, media_kind: Elements, most: int | None, repeats: bool) -> None:
        self.media_kind, self.most, self.repeats = media_kind, most, repeats

    def __call__(self, value: Any, media: Sequence[ItemLayout]) -> HeadTarget:
        """Process indices, a list or (K,); returns ``indices`` (K,).

        Raises:
            ValueError: If there is no such medium, an index lies outside of it, or the number of indices is wrong.
        """
        if not media:
            raise ValueError(f"an order target needs the medium '{self.media_kind}' before its call, there is none")
        indices, size = [int(index) for index in value], media[-1].num_features
        outside = [index for index in indices if not 0 <= index < size]
        if outside:
            raise ValueError(f"order target: expected indices 0 to {size - 1}, got {outside[0]}")
        if self.most is not None and (len(indices) > self.most or (self.most == 1 and not indices)):
            wanted = "one index" if self.most == 1 else f"at most {self.most} indices"
            raise ValueError(f"order target: expected {wanted}, got {len(indices)}")
        if not self.repeats and len(set(indices)) != len(indices):
            raise ValueError(f"order target: expected different indices, got {indices}")
        return {"indices": torch.tensor(indices, dtype=torch.int64)}


@dataclass
class Pointable:
    """What n calls may choose from, and where their decoders begin.

    Args:
        inputs: (n, N + 1, w) what the decoder reads of a choice, the start symbol first.
        keys: (n, N + 1, w) what it compares itself with, the end symbol first.
        allowed: (n, N + 1) True at the end symbol and at real inputs.
        state: Hidden and cell state (1, n, w) of the decoder.
    """

    inputs: Tensor
    keys: Tensor
    allowed: Tensor
    state: tuple[Tensor, Tensor]


class _SelfAttention(nn.Module):
    """Pre-normalised self-attention over ragged inputs."""

    def __init__(self, width: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_layers + 1))
        self.layers = nn.ModuleList(CrossAttention(width, num_heads) for _ in range(num_layers))

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=False):
            known = norm(values)
            values = layer(values, known, known, mask)
        normed: Tensor = self.norms[-1](values)
        return normed


class PointerHead(Head):
    """Pointer network (https://arxiv.org/abs/1506.03134): attention over the inputs is the output distribution.

    With e_j the encoded inputs, e_0 an end symbol and d_i the state of a recurrent decoder that has read the inputs
    chosen so far, ``u_ij = vᵀ tanh(W₁ e_j + W₂ d_i)`` and ``p(choice i) = softmax_j(u_ij)`` over the inputs that there
    are.
    Departures: the states of the language model begin the decoder, inputs may be encoded by attention, which knows no
    order, instead of an LSTM, and the score may be a scaled dot product.

    Args:
        state_size: Width of the language model's states.
        feature_size: Width of the encoder's features.
        elements: Whose features are the inputs: the latest graph's nodes, image's cells or clip's frames.
        width: Inner width w.
        encoder: How an input learns of the others: ``attention``, or an ``lstm`` over their order.
        num_layers: Layers of that encoder; 0 leaves the features as they are.
        num_heads: Attention heads.
        score: ``additive``, as above, or ``dot``.
        max_selections: With 1, exactly one input is chosen and there is no end symbol; otherwise the most that are
            chosen, by default all of them.
        repeats: Whether an input may be chosen again; needs ``max_selections``.
        beam: Sequences that decoding keeps; 1 is greedy.
        num_queries: Learned queries in the language model, for the link ``queries``.
    """

    links = frozenset({"hidden", "queries"})

    def __init__(
        self,
        state_size: int,
        feature_size: int,
        elements: Elements = "graph",
        width: int = 64,
        encoder: ElementEncoder = "attention",
        num_layers: int = 1,
        num_heads: int = 4,
        score: Score = "additive",
        max_selections: int | None = None,
        repeats: bool = False,
        beam: int = 1,
        num_queries: int = 0,
    ) -> None:
        super().__init__(num_queries, state_size)
        if repeats and max_selections is None:
            raise ValueError("repeats: expected max_selections beside it, since nothing else ends a sequence, got none")
        if beam < 1 or (max_selections is not None and max_selections < 1):
            raise ValueError(f"expected beam and max_selections of at least 1, got {beam} and {max_selections}")
        if width % num_heads:
            raise ValueError(f"width: expected a multiple of num_heads={num_heads}, got {width}")
        self.elements, self.width, self.score, self.beam = elements, width, score, beam
        self.max_selections, self.repeats, self.single = max_selections, repeats, max_selections == 1
        self.state_projection = nn.Sequential(nn.LayerNorm(state_size), perceptron(state_size, width, 2 * width))
        self.feature_projection = nn.Linear(feature_size, width)  # not normalised: it may be two coordinates
        self.encoder: nn.Module | None = None
        if encoder == "lstm" and num_layers:
            self.encoder = nn.LSTM(width, width, num_layers, batch_first=True)
        elif num_layers:
            self.encoder = _SelfAttention(width, num_layers, num_heads)
        self.symbols = nn.Parameter(torch.randn(2, width) * 0.1)  # start, end
        self.decoder = nn.LSTM(width, width, batch_first=True)
        self.key, self.query = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.weigh = nn.Linear(width, 1, bias=False) if score == "additive" else None
        self.target_processor = OrderTargetProcessor(elements, max_selections, repeats)

    def forward(self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]) -> Pointable:
        """Encode the inputs of n calls, see :meth:`layers.head.Head.forward`."""
        states = required_states(states, "PointerHead")
        if not contexts:
            empty = states.new_zeros(0, 1, self.width)
            return Pointable(empty, empty, empty[..., 0].bool(), (empty.transpose(0, 1), empty.transpose(0, 1)))
        padded, mask = pad_ragged([self._features(context) for context in contexts])
        if mask is None:
            mask = torch.ones(padded.shape[:2], dtype=torch.bool, device=padded.device)
        values = self.feature_projection(padded)
        encoded, summary = self._encode(values, mask)
        asked, asked_mask = pad_ragged(torch.split(self.state_projection(states), list(lengths)))
        hidden, cell = masked_mean(asked, asked_mask).chunk(2, dim=-1)
        start, end = (symbol.expand(len(contexts), 1, -1) for symbol in self.symbols)
        allowed = torch.cat([torch.full_like(mask[:, :1], not self.single), mask], dim=1)
        return Pointable(
            torch.cat([start, values], dim=1),
            torch.cat([end, encoded], dim=1),
            allowed,
            ((hidden + summary)[None].contiguous(), cell[None].contiguous()),
        )

    def loss(self, predictions: Pointable, targets: Sequence[HeadTarget]) -> LossTerm:
        """Summed negative log-probability of sequences with their ends; ``exact`` counts those right at every step."""
        if not targets:
            return LossTerm(self.zero_touch(), 0)
        device = predictions.keys.device
        chosen = [target["indices"].to(device) + 1 for target in targets]
        if not self.single:
            chosen = [torch.cat([row, row.new_tensor([STOP])]) for row in chosen]
        wanted = pad_sequence(chosen, batch_first=True, padding_value=-100)  # (n, T)
        before = F.pad(wanted[:, :-1].clamp(min=STOP), (1, 0))  # the start symbol stands at 0, too
        read = predictions.inputs.gather(1, before[..., None].expand(-1, -1, self.width))
        states, _ = self.decoder(read, predictions.state)
        allowed = predictions.allowed[:, None].expand(-1, wanted.shape[1], -1)
        if not self.repeats:
            allowed = allowed & ~_chosen_before(before, allowed.shape[-1])
        if self.max_selections is not None and not self.single:  # after so many there can only be the end
            allowed = allowed.clone()
            allowed[:, self.max_selections :, STOP + 1 :] = False
        logits = self._logits(states, predictions.keys, allowed)
        total = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="sum")
        right = ((logits.argmax(dim=-1) == wanted) | (wanted < 0)).all(dim=1).sum()
        return LossTerm(total, len(targets), {"exact": right.float()})

    @torch.no_grad()
    def decode(self, predictions: Pointable, contexts: Sequence[HeadContext]) -> list[Result]:
        """The likeliest sequences that a beam search finds."""
        if not contexts:
            return []
        chosen, scores = self._search(predictions)
        results: list[Result] = []
        for context, row, score in zip(contexts, chosen.tolist(), scores.tolist(), strict=True):
            end = row.index(STOP) if STOP in row else len(row)
            results.append(SelectionResult(context.call, tuple(place - 1 for place in row[:end]), score))
        return results

    def _features(self, context: HeadContext) -> Tensor:
        media = context.of_kind(self.elements)
        if not media:
            raise ValueError(
                f"task '{context.call.task}' needs the medium '{self.elements}', the conversation has none"
            )
        return media[-1].features

    def _encode(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(n, N, w) inputs that know of each other, and (n, w) all of them together."""
        if self.encoder is None:
            return values, masked_mean(values, mask)
        if not isinstance(self.encoder, nn.LSTM):
            encoded = self.encoder(values, mask)
            return encoded, masked_mean(encoded, mask)
        packed = pack_padded_sequence(values, mask.sum(dim=1).cpu(), batch_first=True, enforce_sorted=False)
        output, (hidden, _) = self.encoder(packed)
        return pad_packed_sequence(output, batch_first=True, total_length=values.shape[1])[0], hidden[-1]

    def _logits(self, states: Tensor, keys: Tensor, allowed: Tensor) -> Tensor:
        """(n, T, N + 1) of decoder states (n, T, w), -inf where nothing may be chosen."""
        queries, compared = self.query(states), self.key(keys)
        if self.weigh is None:
            logits = queries @ compared.transpose(1, 2) / self.width**0.5
        else:
            logits = self.weigh((queries[:, :, None] + compared[:, None]).tanh())[..., 0]
        return logits.float().masked_fill(~allowed, float("-inf"))

    def _search(self, given: Pointable) -> tuple[Tensor, Tensor]:
        """(n, T) the best sequence of each call, its end followed by ends, and (n,) its log-probability."""
        num_calls, candidates = given.allowed.shape
        beam, device = self.beam, given.keys.device
        rows = torch.arange(num_calls, device=device).repeat_interleave(beam)
        keys, inputs, allowed = given.keys[rows], given.inputs[rows], given.allowed[rows].clone()
        hidden, cell = (part[:, rows].contiguous() for part in given.state)
        scores = torch.full((num_calls, beam), float("-inf"), device=device)
        scores[:, 0] = 0  # all beams begin alike: one of them counts
        chosen = torch.zeros(num_calls * beam, 0, dtype=torch.int64, device=device)
        last = torch.full((num_calls * beam,), STOP, device=device)
        ended = torch.zeros(num_calls * beam, dtype=torch.bool, device=device)
        most = candidates - 1 if self.max_selections is None else self.max_selections
        if not self.repeats:
            most = min(most, candidates - 1)
        for _ in range(most):
            read = inputs.gather(1, last[:, None, None].expand(-1, 1, self.width))
            states, (hidden, cell) = self.decoder(read, (hidden, cell))
            legal = allowed.clone()
            if not self.single:  # an exhausted or ended sequence can only end
                legal[ended] = False
                legal[:, STOP] = True
            logits = self._logits(states, keys, legal[:, None])[:, 0].log_softmax(dim=-1)
            joined = (scores.flatten()[:, None] + logits).view(num_calls, beam * candidates)
            scores, places = joined.topk(beam, dim=1)
            origin = (places // candidates + torch.arange(num_calls, device=device)[:, None] * beam).flatten()
            last = (places % candidates).flatten()
            chosen = torch.cat([chosen[origin], last[:, None]], dim=1)
            allowed, ended = allowed[origin], ended[origin] | (last == STOP)
            hidden, cell = hidden[:, origin].contiguous(), cell[:, origin].contiguous()
            if not self.repeats:
                allowed = allowed.scatter(1, last[:, None], False)
            if bool(ended.all()):
                break
        best = scores.argmax(dim=1)
        return chosen.view(num_calls, beam, -1)[torch.arange(num_calls, device=device), best], scores.max(dim=1).values


def _chosen_before(before: Tensor, candidates: int) -> Tensor:
    """(n, T, candidates) what was chosen before each step; ``before`` (n, T) is the choice of the step before."""
    marks = F.one_hot(before, candidates).cumsum(dim=1).bool()
    marks[..., STOP] = False
    return marks
