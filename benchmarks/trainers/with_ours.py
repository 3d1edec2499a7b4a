"""Arm: Switchyard's recipe on packs, under the same Lightning."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # arms are started as scripts

from benchmarks.trainers.samples import Sample
from benchmarks.trainers.with_lightning import Clock, make_trainer
from benchmarks.trainers.work import LEARNING_RATE, MAX_GRAD_NORM, Epoch, Way, main
from data.packing import merge_counts, pack, plan_packs
from data.render import Rendered, RenderedMedia
from layers.batch import Step
from models.checkpoint import CONFIG, TASKS, TOKENIZER
from models.plan import BatchPlan
from training.flops import Arithmetic, measure_peak, products_type
from training.init_from import InitFrom
from training.recipe import Recipe

PACK = 2048
"""Tokens of a step, about as many as a rival's eight samples have."""


class PackedSteps(Dataset[Step]):
    """A step of one pack, put together when it is asked for."""

    def __init__(self, samples: Sequence[Sample], plan: BatchPlan) -> None:
        self.plan, self.rendered = plan, [render(sample, plan) for sample in samples]
        lengths = [sample.num_tokens for sample in self.rendered]
        self.packs = plan_packs(lengths, PACK, seed=0, epoch=0).packs

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> Step:
        packs = [pack([self.rendered[place] for place in self.packs[index]], self.plan)]
        return Step(packs, merge_counts(packs))


def render(sample: Sample, plan: BatchPlan) -> Rendered:
    """A sample as the data module's renderer gives it."""
    inputs, layout = plan.processors["image"](torch.from_numpy(sample.image))
    image_id = plan.vocabulary.media_ids["image"]
    positions = [place for place, token in enumerate(sample.input_ids) if token == image_id]
    medium = RenderedMedia("image", "image", inputs, layout, positions)
    return Rendered("sample", sample.input_ids, sample.labels, [medium])


class SwitchyardWay(Way):
    """The recipe trains everything, as the rivals do; every tower runs in every step."""

    packages = ("torch", "lightning", "transformers")

    def __init__(self, folder: Path, order: str, precision: str) -> None:
        super().__init__(folder, order, precision)
        ours = folder / "ours"
        config: dict[str, Any] = yaml.safe_load((ours / CONFIG).read_text())
        config |= {"tasks": yaml.safe_load((ours / TASKS).read_text()), "tokenizer": str(ours / TOKENIZER)}
        self.recipe = Recipe(
            config,
            trainable=["."],
            init_from=[InitFrom(str(ours))],
            learning_rate=LEARNING_RATE,
            warmup_steps=0,
            max_grad_norm=MAX_GRAD_NORM,
            export=None,
        )
        self.recipe.configure_model()

    def loss(self, samples: Sequence[Sample]) -> float:
        """Over packs, as in training."""
        generalist = self.recipe.generalist.train()
        total = 0.0
        steps = PackedSteps(samples, generalist.plan())
        for step in (steps[index] for index in range(len(steps))):
            total += sum(float(self.recipe.pack_losses(batch)["token"].total.detach()) for batch in step.packs)
        return total / sum(sample.num_learned for sample in samples)

    def train(self, samples: Sequence[Sample]) -> Epoch:
        """One epoch of packs."""
        clock, steps = Clock(), PackedSteps(samples, self.recipe.generalist.plan())
        with tempfile.TemporaryDirectory() as scratch:
            trainer = make_trainer(self.precision, scratch, clock, max_steps=len(steps))
            trainer.fit(self.recipe, DataLoader(cast(Any, steps), batch_size=None))
        positions = sum(len(sample.input_ids) for sample in samples)  # nothing is padded
        return Epoch(clock.ended - clock.started, trainer.global_step, positions)

    def facts(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The arithmetic that the samples need, and what this machine does at best in the same precision."""
        steps, arithmetic = PackedSteps(samples, self.recipe.generalist.plan()), Arithmetic(self.recipe.generalist)
        operations = sum(arithmetic.of(batch) for index in range(len(steps)) for batch in steps[index].packs)
        peak = measure_peak(torch.device("cpu"), products_type(self.precision))
        return {"operations": operations, "peak_operations_per_second": peak}


if __name__ == "__main__":
    main(SwitchyardWay)
