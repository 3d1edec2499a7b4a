"""A training loop that holds only what a step needs."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from layers.batch import Step
from training.muon import muon_adamw
from training.optimizer import clip_gradients, global_grad_norm, warmup_cosine
from training.recipe import Recipe


def take_steps(recipe: Recipe, steps: Sequence[Step]) -> list[float]:
    """Train a recipe's model by all steps, in float32.

    Returns:
        When the first step began and when each ended, by ``time.perf_counter``.
    """
    recipe.configure_model()
    model = recipe.generalist.train()
    optimizer = muon_adamw(recipe.groups(model), recipe.betas, "32-true")
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, recipe.warmup_steps, len(steps))
    )
    times = [time.perf_counter()]
    for step in steps:
        for pack in step.packs:
            recipe.objective(model(pack), step.counts).backward()
        parameters = [p for p in model.parameters() if p.grad is not None]
        clip_gradients(parameters, recipe.max_grad_norm, global_grad_norm(parameters))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        times.append(time.perf_counter())
    return times
