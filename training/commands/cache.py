"""``python -m training cache``: run frozen encoders over all samples of a recipe, ahead of its training."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data.datamodule import PackedDataModule
from data.stream import EvalLoader
from layers.batch import Step
from training.callbacks import FullPrecision
from training.cli import TrainCLI
from training.frozen_features import FeatureKeeper
from training.recipe import Recipe

HELP = "fill the features of frozen encoders (model.init_args.features) for every sample of a recipe"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--config", action="append", required=True, help="as for train.py fit; may be repeated")
    parser.add_argument(
        "overrides", nargs=argparse.REMAINDER, help="further arguments of train.py fit, such as --trainer.precision=X"
    )


def run(args: argparse.Namespace) -> int:
    """Encode what is missing, a bar per part of the data; status 2 if the recipe keeps no features."""
    chosen = [word for config in args.config for word in ("--config", config)]
    try:
        recipe, data, trainer = _build([*chosen, *args.overrides])
        recipe.configure_model()
        device = trainer.strategy.root_device
        generalist = recipe.to(device).generalist.eval()
        for callback in trainer.callbacks:
            if isinstance(callback, FullPrecision):
                callback.on_fit_start(trainer, recipe)
        if recipe.features is None:
            raise ValueError("model.init_args.features: expected a folder and kinds, got none")
        keeper = FeatureKeeper(recipe.features, generalist, str(trainer.precision))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    data.prepare_data()
    parts = {"training": data.train_samples(), **({"validation": data.val_samples()} if data.val_sources else {})}
    with _progress() as progress, trainer.precision_plugin.forward_context(), torch.no_grad():
        try:
            for name, samples in parts.items():
                loader = EvalLoader(samples, None, data.num_workers, features=keeper.lookup)
                for step in progress.track(loader, total=len(loader), description=f"{name} packs"):
                    _complete(keeper, step, device)
        finally:
            keeper.flush()
    print(keeper.report())
    return 0


def _build(arguments: list[str]) -> tuple[Recipe, PackedDataModule, Any]:
    cli = TrainCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=None,
        seed_everything_default=0,
        args=arguments,
        run=False,
    )
    if not isinstance(cli.model, Recipe) or not isinstance(cli.datamodule, PackedDataModule):
        got = f"{type(cli.model).__name__} and {type(cli.datamodule).__name__}"
        raise ValueError(f"expected a Recipe and a PackedDataModule, got {got}")
    return cli.model, cli.datamodule, cli.trainer


def _complete(keeper: FeatureKeeper, step: Step, device: torch.device) -> None:
    for pack in step.packs:
        keeper.complete(pack.to(device))


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
