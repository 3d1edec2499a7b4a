"""What a fit would do, told before anything is loaded or allocated (``train.py fit --dry_run``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from rich.console import Console
from rich.table import Table
from torch import nn

from data.datamodule import PackedDataModule
from data.stream import SampleSet, StepDataset
from layers.batch import Batch
from models.generalist import Generalist
from training.acceleration import accelerate
from training.checks.memory import Memory, device_memory, estimate_memory, num_parameters, text_pack
from training.recipe import Recipe

_DEPTH = {"encoders": 2, "projectors": 2, "heads": 2}  # how far a part's name goes


@dataclass
class Plan:
    """What is known of a fit beforehand.

    Args:
        parts: Part -> (parameters, of these trained).
        groups: The optimizer's.
        memory: Estimate for one device, or None where the model is no Generalist.
        budget: Lines about the data: (what, figure).
        problems: What would keep the fit from starting.
    """

    parts: dict[str, tuple[int, int]]
    groups: list[dict[str, Any]]
    memory: Memory | None
    budget: list[tuple[str, str]]
    problems: list[str] = field(default_factory=list)


def plan_fit(model: LightningModule, data: LightningDataModule, trainer: Mapping[str, Any]) -> Plan:
    """Look at a fit before it starts; nothing is loaded but the shards' indices.

    Args:
        model: Not configured yet.
        data: Its data.
        trainer: The trainer's arguments.
    """
    module: nn.Module = model.skeleton() if isinstance(model, Recipe) else model
    grouped: Any = getattr(model, "groups", None)
    groups = grouped(module) if grouped is not None else []
    problems = []
    if isinstance(model, Recipe):
        problems += [
            f"model.init_args.init_from[{number}]: '{source.path}' is not there yet"
            for number, source in enumerate(model.init_from)
            if not source.file.is_file()
        ]
    steps = int(trainer.get("max_steps") or -1)
    samples = None
    if isinstance(data, PackedDataModule) and data.reading == "indexed":
        try:
            data.prepare_data()
            samples = data.train_samples()
        except (OSError, ValueError) as error:
            problems.append(str(error))
    budget = _budget(data, samples, steps) if isinstance(data, PackedDataModule) else []
    memory = None
    parts = _parts(module)
    if isinstance(model, Recipe) and isinstance(data, PackedDataModule):
        assert isinstance(module, Generalist)
        pack = _largest_pack(data) if samples is not None else text_pack(data.max_tokens)
        accelerate(module, replace(model.acceleration, compiled=None, float8=False))
        states = 3.0 if model.average_decay is not None else 2.0
        memory = estimate_memory(module, groups, str(trainer.get("precision") or "32-true"), pack, states)
        if samples is None:
            budget.append(("activations", "of text alone, since the data are not there"))
    return Plan(parts, groups, memory, budget, problems)


def show(plan: Plan, console: Console | None = None) -> None:
    """Print it."""
    console = console or Console()
    table = Table("part", "parameters", "trained", "frozen", title="what is trained")
    for name, (total, trained) in plan.parts.items():
        table.add_row(name, f"{total:,}", f"{trained:,}" if trained else "–", f"{total - trained:,}")
    total, trained = (sum(column) for column in zip(*plan.parts.values(), strict=True))
    table.add_section()
    table.add_row("all", f"{total:,}", f"{trained:,}", f"{total - trained:,}")
    console.print(table)
    table = Table("optimizer", "peak rate", "decay", "tensors", "parameters", title="parameter groups")
    for group in plan.groups:
        sizes = [parameter.numel() for parameter in group["params"]]
        kind = "Muon" if group.get("muon") else "AdamW"
        rate, decay = f"{group['lr']:.3g}", f"{group['weight_decay']:.3g}"
        table.add_row(kind, rate, decay, str(len(sizes)), f"{sum(sizes):,}")
    console.print(table)
    if plan.budget:
        table = Table("", "", title="token budget", show_header=False)
        for row in plan.budget:
            table.add_row(*row)
        console.print(table)
    if plan.memory is not None:
        _show_memory(plan.memory, console)
    for problem in plan.problems:
        console.print(f"[red]would not start:[/red] {problem}")


def _show_memory(memory: Memory, console: Console) -> None:
    table = Table("", "MiB", title="memory of a device that holds the whole model", show_header=False)
    for name in ("parameters", "gradients", "optimizer", "activations", "total"):
        table.add_row(name, f"{getattr(memory, name) / 2**20:,.0f} MiB")
    console.print(table)
    here = device_memory()
    verdict = "fits" if memory.total < here else "[red]does not fit[/red] without sharding"
    device = "GPU" if torch.cuda.is_available() else "main memory"
    console.print(f"this machine's {device} has {here / 2**20:,.0f} MiB: {verdict}")


def _parts(module: nn.Module) -> dict[str, tuple[int, int]]:
    found = {}
    for name, child in module.named_children():
        children = child.named_children() if _DEPTH.get(name) else [("", child)]
        for inner, part in children:
            count = num_parameters(part), num_parameters(part, trained=True)
            if count[0]:
                found[f"{name}.{inner}".rstrip(".")] = count
    return found


def _budget(data: PackedDataModule, samples: SampleSet | None, steps: int) -> list[tuple[str, str]]:
    per_step = data.max_tokens * data.packs_per_step
    rows = [("a step", f"{data.packs_per_step} packs of at most {data.max_tokens:,} tokens: {per_step:,}")]
    if steps > 0:
        rows.append((f"{steps:,} steps", f"at most {steps * per_step:,} tokens"))
    if samples is None:
        return rows
    round_tokens = 0.0
    dataset = data.train_dataloader().dataset
    assert isinstance(dataset, StepDataset)  # what is streamed has no samples to count
    amounts = dataset.schedule.amounts(0)
    for number, (source, amount) in enumerate(zip(data.sources, amounts.tolist(), strict=True)):
        own = samples.lengths[samples.source_of == number]
        round_tokens += amount * float(own.mean())
        told = f"{len(own):,} samples of {own.mean():,.0f} tokens ({own.min():,} to {own.max():,})"
        rows.append((Path(source.title).name, f"{told}, {amount:,.0f} read in a round"))
    if samples.bad:
        rows.append(("left out", f"{len(samples.bad):,} samples that do not render"))
    rows.append(("a round", f"{round_tokens:,.0f} tokens, {round_tokens / per_step:,.0f} steps at least"))
    if steps > 0:
        rows.append(("rounds", f"{steps * per_step / round_tokens:,.1f} at most"))
    return rows


def _largest_pack(data: PackedDataModule) -> Batch:
    """Of the first steps, the pack of most tokens."""
    dataset = data.train_dataloader().dataset
    packs = [pack for step in range(2) for pack in dataset[step][0].packs]
    found: Batch = max(packs, key=lambda pack: pack.input_ids.shape[1])
    return found
