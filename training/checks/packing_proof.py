"""Proof that a packed step is the step of its samples apart, for any configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data.packing import merge_counts
from layers.batch import Batch
from layers.layout import Layout
from models.generalist import Generalist
from models.reference import eager_reference, leaking
from training.recipe import Recipe

ALLOWED = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Relative differences that rounding explains; transformers' eager softmax is float32 even in float64."""


@dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        what: "loss token", "gradient encoders.image", "features image".
        ours: The packed step's value, or the length of its gradient.
        theirs: That of transformers' eager attention on the samples apart.
        difference: Length of the difference over the length of theirs.
    """

    what: str
    ours: float
    theirs: float
    difference: float


@dataclass(frozen=True)
class Proof:
    """What was compared.

    Args:
        rows: The comparisons.
        leak: Relative difference of the gradient if attention crossed the samples: what the comparison would see.
        contents: Number of samples, tokens, and items of each modality.
        allowed: Largest difference that rounding explains.
    """

    rows: list[Row]
    leak: float
    contents: Mapping[str, int]
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether no difference is larger than rounding explains."""
        return all(row.difference <= self.allowed for row in self.rows)


def prove_packing(recipe: Recipe, pack: Batch) -> Proof:
    """Compare a packed step with transformers' eager attention on its samples apart.

    Losses, and gradients of all that is trained, part by part; and what the encoders and projectors make of each
    medium in its batch and alone. Nothing is random but what heads draw, which both draw alike; parts are in eval mode.

    Args:
        recipe: Configured; its model decides the type of the numbers and the device.
        pack: A pack of it, on the device.
    """
    generalist = recipe.generalist.eval()
    ours = _step(recipe, pack, nullcontext)
    theirs = _step(recipe, pack, lambda: eager_reference(generalist.language_model))
    leak = _step(recipe, pack, lambda: leaking(generalist.language_model))
    rows = [
        Row(
            f"loss {name}", value, theirs.losses[name], abs(value - theirs.losses[name]) / abs(theirs.losses[name] or 1)
        )
        for name, value in ours.losses.items()
    ]
    rows += [Row(f"gradient {part}", *_compared(own, theirs.gradients[part])) for part, own in ours.gradients.items()]
    with torch.no_grad():
        rows += [Row(f"features {kind}", *_features(generalist, pack, kind)) for kind in pack.media]
    contents = {"samples": len(pack.segment_lengths), "tokens": sum(pack.segment_lengths)}
    contents |= {kind: len(media.items) for kind, media in pack.media.items()}
    away = _compared(torch.cat(list(leak.gradients.values())), torch.cat(list(theirs.gradients.values())))[2]
    return Proof(rows, away, contents, ALLOWED[generalist.dtype])


@dataclass(frozen=True)
class _Outcome:
    losses: dict[str, float]
    gradients: dict[str, Tensor]


def _step(recipe: Recipe, pack: Batch, context: Callable[[], AbstractContextManager[None]]) -> _Outcome:
    recipe.generalist.zero_grad()
    torch.manual_seed(0)
    counts = merge_counts([pack])
    with context():
        losses = recipe.pack_losses(pack)
        recipe.objective(losses, counts).backward()
    gradients: dict[str, list[Tensor]] = {}
    for name, parameter in recipe.generalist.named_parameters():
        if parameter.requires_grad:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.setdefault(_part(name), []).append(gradient.detach().flatten().double())
    recipe.generalist.zero_grad()
    values = {name: float(term.total.detach()) / max(1, term.count) for name, term in losses.items()}
    return _Outcome(values, {part: torch.cat(items) for part, items in gradients.items()})


def _part(name: str) -> str:
    """The part that a parameter belongs to: "language_model", "encoders.image"."""
    first, _, rest = name.partition(".")
    return first if first == "language_model" else f"{first}.{rest.split('.')[0]}"


def _compared(ours: Tensor, theirs: Tensor) -> tuple[float, float, float]:
    """Both lengths, and the length of the difference over the second; 0 where both are 0."""
    length, difference = float(theirs.norm()), float((ours - theirs).norm())
    return float(ours.norm()), length, difference / length if length else (math.inf if difference else 0.0)


def _features(generalist: Generalist, pack: Batch, kind: str) -> tuple[float, float, float]:
    """What a modality's items become together and alone."""
    media = pack.media[kind]
    together = generalist.encode_media({kind: media})[kind].projected
    alone = []
    for index, item in enumerate(media.items):
        own = replace(
            media,
            items=[item],
            layout=Layout([media.layout.items[index]]),
            token_lengths=[media.token_lengths[index]],
            segments=media.segments[index : index + 1],
        )
        alone.append(generalist.encode_media({kind: own})[kind].projected)
    return _compared(together.double(), torch.cat(alone).double())
