"""The language model as transformers itself would run it: what packing has to equal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from models.adapters.prompt_gate import Gates
from models.language import LanguageModel
from models.token_loss import plain_token_loss


@contextmanager
def eager_reference(model: LanguageModel) -> Iterator[None]:
    """Inside, every sample of a pack goes alone through transformers' own eager attention, at its own positions.

    The token loss has all its logits. What conditions a model (gates, situations) is handed over sample by sample.
    """

    def alone(inputs_embeds: Tensor, position_ids: Tensor, segment_lengths: list[int]) -> Tensor:
        states = []
        for piece in inputs_embeds.split(segment_lengths, dim=1):
            mask = torch.ones(piece.shape[:2], dtype=torch.long, device=piece.device)
            output = model.model.base_model(inputs_embeds=piece, attention_mask=mask, use_cache=False)
            states.append(output.last_hidden_state[0])
        return torch.cat(states)

    def forward(
        inputs_embeds: Tensor,
        position_ids: Tensor,
        segment_lengths: list[int],
        gates: Gates | None = None,
        situations: Tensor | None = None,
    ) -> Tensor:
        states, start = [], 0
        for index, length in enumerate(segment_lengths):
            piece = inputs_embeds[:, start : start + length]
            own_gates = None if gates is None else gates.rows(torch.tensor([index], device=piece.device))
            own_situations = None if situations is None else situations[:, start : start + length]
            states.append(plain(piece, position_ids[:, :length] * 0, [length], own_gates, own_situations))
            start += length
        return torch.cat(states)

    hosted: Any = model.model
    plain, implementation = model.forward, hosted.config._attn_implementation
    hosted.set_attn_implementation("eager")
    replaced: dict[str, Any] = {"_packed": alone, "forward": forward}
    try:
        for name, function in replaced.items():
            setattr(model, name, function)
        with plain_token_loss():
            yield
    finally:
        for name in replaced:
            delattr(model, name)
        hosted.set_attn_implementation(implementation)


@contextmanager
def leaking(model: LanguageModel) -> Iterator[None]:
    """Inside, a pack is one segment: attention crosses its samples. A control for what must not happen."""
    packed = model._packed

    def together(inputs_embeds: Tensor, position_ids: Tensor, segment_lengths: list[int]) -> Tensor:
        return packed(inputs_embeds, position_ids, [sum(segment_lengths)])

    model._packed = together  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model._packed
