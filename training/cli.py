"""The command line of ``train.py``: Lightning's own, with a run folder that resumes and keeps its logs."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from training.callbacks import LAST_CHECKPOINT, ResumePoint, StepProgress, find_resume_point
from training.checks.machine import unmet_by_machine
from training.checks.parser import PlainParser
from training.faults import StoppedError, explained
from training.processes.strategies import register_strategies

# What the libraries say in every run, of themselves or of things that are meant to be as they are.
_NO_NEWS = (
    r"`torch\.jit\.script` is deprecated",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"You have overridden `transfer_batch_to_device` in `LightningModule`",
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    r"Found \d+ module\(s\) in eval mode at the start of training",
    r"LightningCLI's args parameter is intended to run from within Python",
)
# The arguments of a subcommand are those of Lightning's Trainer, of which the page is full; this stands around them.
_HELP = {
    "fit": {
        "description": "Train what a configuration describes (--config FILE, several for a stage over its model). The "
        "same command continues an interrupted run; --dry_run tells what would be done; --print_config writes every "
        "setting.",
        "epilog": "What a model and its data take depends on their classes: --model.help=training.recipe.Recipe and "
        "--data.help=data.datamodule.PackedDataModule explain it.",
    },
    "validate": {"description": "Print the losses of held-out data; `python -m eval` measures what a model can do."},
}


def _hush() -> None:
    for message in _NO_NEWS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in str(record.msg)
    )


def _plan(model: LightningModule) -> Any:
    plan = getattr(model, "plan", None)
    return plan() if plan is not None else None


class TrainCLI(LightningCLI):
    """A fit logs to TensorBoard and CSV under its root, and resumes from ``last.ckpt`` there unless told otherwise.

    A run that has to end (a full disk, too little memory, ...) ends with a
    :class:`training.faults.TrainingFaultError` that says why. What the configuration asks of a machine that this one
    does not have is refused before anything is built.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _hush()
        register_strategies()
        kwargs["auto_configure_optimizers"] = False
        kwargs["parser_class"] = PlainParser
        kwargs.setdefault("parser_kwargs", _HELP)
        super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Training, and the losses of held-out data; ``python -m eval`` measures."""
        own = {"model", "datamodule"}
        return {"fit": {*own, "train_dataloaders", "val_dataloaders"}, "validate": {*own, "dataloaders"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The data module renders for the model that it feeds."""
        parser.link_arguments("model", "data.init_args.plan", compute_fn=_plan, apply_on="instantiate")
        parser.add_argument(
            "--dry_run",
            action="store_true",
            help="Say what would be trained, with which rates, on how many tokens, in how much memory; then end.",
        )
        parser.add_argument("--wandb", type=str | None, default=None, help="Log to this project of W&B as well.")

    def before_instantiate_classes(self) -> None:
        """Refuse another machine's settings.

        Raises:
            ValueError: Naming the key.
        """
        config = self._settings(self.config)
        if config.get("dry_run"):
            return
        for message in unmet_by_machine(config):
            raise ValueError(message)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Log to both by default; a resumed run adds a version instead of overwriting.

        Raises:
            SystemExit: In a dry run, once it is told; with status 1 if the fit would not start.
        """
        if self._settings(self.config).get("dry_run"):
            raise SystemExit(self._tell())
        settings = self.config_init[str(self.subcommand)] if self.subcommand else self.config_init
        config = settings["trainer"]
        if config.get("logger") in (None, True) and not config.get("fast_dev_run"):
            root = config.get("default_root_dir") or "."
            loggers: list[Logger] = [TensorBoardLogger(root, name="tensorboard"), CSVLogger(root, name="csv")]
            if settings.get("wandb"):
                loggers.append(_wandb(settings["wandb"], root))
            kwargs["logger"] = loggers
        callbacks = config.get("callbacks") or []
        given = callbacks if isinstance(callbacks, list) else [callbacks]
        added: list[Any] = []
        if config.get("enable_checkpointing") is not False and not any(isinstance(c, Checkpoint) for c in given):
            added.append(ResumePoint())
        if config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in given):
            added.append(StepProgress())
        kwargs["callbacks"] = [*given, *added]
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Continue an interrupted run."""
        config = self.config_init[str(self.subcommand)]
        if config.get("ckpt_path") or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if found := find_resume_point(Path(self.trainer.default_root_dir)):
            config["ckpt_path"] = str(found)
            rank_zero_info(f"resuming from {found}")

    def fit(self, **arguments: Any) -> None:
        """Train; what ends the run is said in words.

        Raises:
            TrainingFaultError: If the run had to end, with what it can be continued from.
            StoppedError: If it was asked to stop.
        """
        try:
            self.trainer.fit(**arguments)
        except StoppedError as stop:
            rank_zero_info(stop.message)
            raise
        except Exception as error:
            fault = explained(error)
            if launcher := self.trainer.strategy.launcher:
                launcher.kill(signal.SIGKILL)  # they may wait for this one for ever
            if fault is None:
                raise
            last = Path(self.trainer.default_root_dir) / LAST_CHECKPOINT
            after = f"The same command continues from '{last}'" if last.exists() else "Nothing was saved before"
            raise type(fault)(f"{fault}. {after}.") from error

    def _settings(self, config: Any) -> dict[str, Any]:
        """Those of the subcommand, as plain mappings."""
        own = config[self.subcommand] if self.subcommand else config
        settings: dict[str, Any] = own.clone().as_dict()
        return settings

    def _tell(self) -> int:
        from training.checks.dry_run import plan_fit, show

        settings = self._settings(self.config)
        plan = plan_fit(self.model, self.datamodule, settings["trainer"])
        plan.problems += unmet_by_machine(settings)
        show(plan)
        return 1 if plan.problems else 0


def _wandb(project: str, root: str) -> Logger:
    try:
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(project=project, save_dir=root)
    except ModuleNotFoundError as error:
        raise ValueError(f"wandb: expected the package wandb for project '{project}': {error}") from None


class _Reader(TrainCLI):
    """Makes the model and the data of a configuration, but no trainer, which might want another machine."""

    def before_instantiate_classes(self) -> None:
        """Nothing is refused."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """None."""
        return None


def read_config(paths: Sequence[str], settings: Sequence[str] = ()) -> tuple[LightningModule, LightningDataModule]:
    """What a fit with these configurations would train, and on what.

    Args:
        paths: YAML files, later ones over earlier ones.
        settings: More settings, as on the command line of ``train.py``.
    """
    files = [argument for path in paths for argument in ("--config", path)]
    reader = _Reader(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        run=False,
        args=[*files, *settings],
    )
    return reader.model, reader.datamodule
