"""What the processes of the distributed tests do; each builds its own packs and writes down what it finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from data.packing import merge_counts, pack
from layers.batch import Batch, Step
from models.plan import BatchPlan
from tests.tiny import rendered, tiny_config
from tests.training.processes.ranks import rank
from training.processes.strategies import FullyShardedStrategy
from training.recipe import Recipe

MIXES = (("box", "mask", "draw"), ("text",), ("node", "link"), ("box without target", "text"))
"""Packs of images alone, of text alone, of graphs alone, and one whose head has nothing to learn from."""


def packs_of(plan: BatchPlan, numbers: range) -> list[Batch]:
    """The mixes of these numbers."""
    return [pack([_rendered(name, plan, number) for name in MIXES[number % len(MIXES)]], plan) for number in numbers]


def _rendered(name: str, plan: BatchPlan, seed: int) -> Any:
    sample = rendered(name.split()[0], plan, seed)
    if name.endswith("without target"):
        for call in sample.calls:
            call.target.clear()
    return sample


class Observed(Callback):
    """Whole gradients of every step, before they are clipped, and the weights after it."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.norms.append(float(pl_module.grad_norm))
        state = {name: _whole(p.detach()).clone() for name, p in pl_module.generalist.named_parameters()}
        self.weights = state


class ObservedRecipe(Recipe):
    """A recipe that shows its gradients."""

    observed: Observed
    in_double = False

    def prepare(self) -> None:
        if self.in_double:
            self.generalist.double()

    def optimize(self, batch: Step) -> None:
        if self.global_step + 1 < self.trainer.max_steps:  # the last step shows what the ones before led to
            return super().optimize(batch)
        found = {n: _whole(p.grad).clone() for n, p in self.generalist.named_parameters() if p.grad is not None}
        self.observed.gradients.append(found)
        super().optimize(batch)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def train_steps(
    folder: Path,
    name: str,
    strategy: str,
    world_size: int,
    num_packs: int,
    in_double: bool = False,
    steps: int = 2,
    language_model: dict[str, Any] | None = None,
    **recipe_arguments: Any,
) -> None:
    """Train on steps of ``num_packs`` packs over all processes; the first writes gradients, norms and weights."""
    torch.manual_seed(0)
    arguments = {"trainable": ["."], "warmup_steps": 0, "max_grad_norm": 0.5, "export": None, **recipe_arguments}
    config = tiny_config(folder)
    config["language_model"] = language_model or config["language_model"]
    recipe = ObservedRecipe(generalist=config, **arguments)
    recipe.observed, recipe.in_double = Observed(), in_double
    plan, own = recipe.plan(), rank() if world_size > 1 else 0
    batches = []
    for step in range(steps):
        packs = packs_of(plan, range(step * num_packs + own, (step + 1) * num_packs, world_size))
        batches.append(Step(packs, merge_counts(packs)))
    sharding = FullyShardedStrategy(save_distributed_checkpoint=False)
    trainer = _trainer(folder / name, sharding if strategy == "fsdp2" else strategy, world_size, steps, recipe.observed)
    trainer.fit(recipe, DataLoader(batches, batch_size=None))
    if own == 0:
        found = recipe.observed
        torch.save([found.gradients, found.norms, found.weights], folder / f"{name}.pt")


def _trainer(root: Path, strategy: Any, world_size: int, steps: int, *callbacks: Callback) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=strategy,
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
        default_root_dir=root,
    )


def run_train(arguments: list[str], expected: int | None = None) -> None:
    """``train.py`` in this process; it may end with a status."""
    from train import main

    try:
        main(arguments)
    except SystemExit as end:
        if end.code != expected:
            raise


def show_parts(folder: Path, trainable: list[str], shard_frozen: bool) -> None:
    """Write down which parameters FSDP2 shards, and which modules gather by themselves."""
    from torch.distributed.fsdp import FSDPModule

    recipe = Recipe(generalist=tiny_config(folder), trainable=trainable, export=None)
    trainer = _trainer(folder / "parts", FullyShardedStrategy(shard_frozen=shard_frozen), 2, 1)
    packs = packs_of(recipe.plan(), range(rank(), 2, 2))
    trainer.fit(recipe, DataLoader([Step(packs, merge_counts(packs))], batch_size=None))
    if rank() == 0:
        sharded = {n: isinstance(p, DTensor) for n, p in recipe.generalist.named_parameters()}
        units = [name for name, module in recipe.generalist.named_modules() if isinstance(module, FSDPModule)]
        trained = {n for n, p in recipe.generalist.named_parameters() if p.requires_grad}
        torch.save([sharded, units, trained], folder / "parts.pt")
