"""Heads that compare the calls of all processes, in training: no process waits, and together they equal one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from data.__main__ import main as data_main
from data.packing import merge_counts, pack
from data.shards import read_samples
from data.stream.samples import render_sample
from layers.batch import Batch, Step
from models.plan import BatchPlan
from tests.training.processes.distributed import Observed, ObservedRecipe
from tests.training.processes.ranks import rank, run_ranks

CONFIG = Path(__file__).parents[3] / "configs" / "debug" / "vectors.yaml"
FIRST = (("embed-0", "entity-0", "related-lyon"), ("embed-1", "embed-4", "entity-1", "entity-4"))
LATER = ("embed-2", "entity-2", "compare-0")


def packs_of(folder: Path, plan: BatchPlan, world_size: int, own: int) -> list[Batch]:
    """The first packs of both processes, which one process has as one; the first process has a second pack."""
    samples = {s.key: s for s in read_samples([str(p) for p in sorted(folder.glob("vectors/data/train/*.tar"))])}
    groups = [*FIRST, LATER][own::2] if world_size == 2 else [FIRST[0] + FIRST[1], LATER]
    return [pack([render_sample(samples[key], plan) for key in group], plan) for group in groups]


def train_once(folder: Path, name: str, world_size: int) -> None:
    """One step; the first process writes gradients, norms and weights."""
    torch.manual_seed(0)
    config = yaml.safe_load(CONFIG.read_text())["model"]["init_args"]["generalist"]
    config["tokenizer"] = str(folder / "vectors" / "tokenizer")
    recipe = ObservedRecipe(generalist=config, trainable=["."], warmup_steps=0, max_grad_norm=0.5, export=None)
    recipe.observed, recipe.in_double = Observed(), True
    packs = packs_of(folder, recipe.plan(), world_size, rank() if world_size > 1 else 0)
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        max_steps=1,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[recipe.observed],
        default_root_dir=folder / name,
        **options,
    )
    trainer.fit(recipe, DataLoader([Step(packs, merge_counts(packs))], batch_size=None))
    if world_size == 1 or rank() == 0:
        torch.save([recipe.observed.gradients, recipe.observed.norms], folder / f"{name}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gathering")
    for line in CONFIG.read_text().splitlines():
        if line.startswith("#   python -m data "):
            command = line.replace("runs/debug", str(folder)).replace("configs/", f"{CONFIG.parents[1]}/")
            assert data_main(shlex.split(command)[4:]) == 0
    return folder


@pytest.mark.slow
def test_negatives_of_another_process_have_the_gradient_of_one(folder: Path) -> None:
    """Two processes, of which one has a pack more, and calls of other heads, too."""
    train_once(folder, "one", 1)
    run_ranks(train_once, 2, folder, "two", 2)
    one, two = (torch.load(folder / f"{name}.pt") for name in ("one", "two"))
    assert set(one[0][0]) == set(two[0][0])
    for name, gradient in one[0][0].items():
        torch.testing.assert_close(two[0][0][name], gradient, atol=1e-9, rtol=1e-7, msg=name)
    assert two[1] == pytest.approx(one[1])
    assert float(one[0][0]["heads.embed.temperature.log_scale"].abs()) > 0
