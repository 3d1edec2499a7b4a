"""What processes tell each other around a step, so that all run the same collectives and log the same figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from layers.batch import Batch

if TYPE_CHECKING:
    from models.generalist import Generalist

MEDIA = "media/"
"""Before a modality's name, among the counts of a step: how many of its items the packs hold."""
MOST_PACKS = "packs"
"""Key of :func:`step_totals`: the most packs that a process has in this step."""


def many_processes() -> bool:
    """Whether there are others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def step_totals(
    counts: Mapping[str, int], num_packs: int, names: Sequence[str], device: torch.device
) -> dict[str, float]:
    """Counts over all processes, and the most packs that one of them has, in one exchange.

    Args:
        counts: Of this process; names that it lacks count 0.
        num_packs: Of this process.
        names: The same in every process.
        device: Where the processes exchange tensors.
    """
    own = [float(counts.get(name, 0)) for name in names] + [float(num_packs)]
    if many_processes():
        values = torch.tensor(own, dtype=torch.float64, device=device)
        everyones = values.new_empty(dist.get_world_size() * len(own))
        dist.all_gather_into_tensor(everyones, values)
        everyones = everyones.reshape(-1, len(own))
        own = [*everyones[:, :-1].sum(0).tolist(), float(everyones[:, -1].max())]
    return dict(zip([*names, MOST_PACKS], own, strict=True))


def settle_untouched(generalist: Generalist, counts: Mapping[str, float]) -> None:
    """Leave no gradient, not even a zero, to parts that no process's packs have used; zeros to the rest of the others.

    An optimizer would take a zero for news: Muon gives its momentum the full length of a step whatever its size, and
    AdamW goes on in the direction of the last one. Within a part that was used (a head, half of whose tasks came up)
    one process must do as many do, and those that exchange gradients have zeros there.

    Args:
        generalist: The model, after the backward pass.
        counts: Of heads and of ``media/KIND``, over all processes.
    """
    parts = [part for name, part in generalist.heads.items() if not counts[name]]
    for modules in (generalist.encoders, generalist.projectors):
        parts += [part for kind, part in modules.items() if not counts[f"{MEDIA}{kind}"]]
    untouched = {id(parameter) for part in parts for parameter in part.parameters()}
    for parameter in generalist.parameters():
        if id(parameter) in untouched:
            parameter.grad = None
        elif parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def add_up(values: Mapping[str, tuple[float, int]]) -> dict[str, tuple[float, int]]:
    """(sum, count) per name over all processes, which may know different names."""
    if not many_processes():
        return dict(values)
    everyones: list[Mapping[str, tuple[float, int]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyones, dict(values))
    totals: dict[str, tuple[float, int]] = {}
    for own in everyones:
        for name, (total, count) in own.items():
            before = totals.get(name, (0.0, 0))
            totals[name] = (before[0] + total, before[1] + count)
    return totals


def empty_pack(generalist: Generalist, like: Batch | None = None) -> Batch:
    """A pack from which nothing is learned: two tokens of text, for a process that has fewer packs than another.

    Args:
        generalist: The model, on whose device it is.
        like: A pack whose length it takes.
    """
    tokenizer = generalist.tokenizer
    token = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    length = 2 if like is None else like.input_ids.shape[1]
    ids = torch.full((1, length), token)
    instructions: list[Tensor] = [ids[0, :2]] if generalist.language_model.gate is not None else []
    pack = Batch(ids, torch.full_like(ids, -100), torch.arange(length)[None], [length], instructions=instructions)
    return pack.to(generalist.device)
