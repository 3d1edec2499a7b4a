"""The command line of ``train.py``: Lightning's own, with a run folder that resumes and keeps its logs."""

from __future__ import annotations

import logging
import signal
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from training.callbacks import LAST_CHECKPOINT, ResumePoint, find_resume_point
from training.faults import StoppedError, explained
from training.processes.strategies import register_strategies

# What the libraries say in every run, of themselves or of things that are meant to be as they are.
_NO_NEWS = (
    r"`torch\.jit\.script` is deprecated",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"You have overridden `transfer_batch_to_device` in `LightningModule`",
    r"The number of training batches \(\d+\) is smaller than the logging interval",
)


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
    :class:`training.faults.TrainingFaultError` that says why.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _hush()
        register_strategies()
        super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The data module renders for the model that it feeds."""
        parser.link_arguments("model", "data.init_args.plan", compute_fn=_plan, apply_on="instantiate")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Log to both by default; a resumed run adds a version instead of overwriting."""
        config = self.config_init[str(self.subcommand)]["trainer"] if self.subcommand else self.config_init["trainer"]
        if config.get("logger") in (None, True) and not config.get("fast_dev_run"):
            root = config.get("default_root_dir") or "."
            kwargs["logger"] = [TensorBoardLogger(root, name="tensorboard"), CSVLogger(root, name="csv")]
        callbacks = config.get("callbacks") or []
        given = callbacks if isinstance(callbacks, list) else [callbacks]
        if config.get("enable_checkpointing") is not False and not any(isinstance(c, Checkpoint) for c in given):
            kwargs["callbacks"] = [*given, ResumePoint()]
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
