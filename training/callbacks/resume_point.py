"""A resume point: where an interrupted run goes on from, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO

from training.faults import NotSavedError, StoppedError, TrainingFaultError, explained

LAST_CHECKPOINT = "last.ckpt"
PREVIOUS_CHECKPOINT = "previous.ckpt"
_PARTIAL = ".partial"


class ResumePoint(Checkpoint):
    """Write ``last.ckpt`` into the trainer's root; the same command continues from it.

    It is written every so many steps, after the last step, and when the run is asked to stop. A new one is written
    under another name, reaches the disk and is then renamed, and the one before stays as ``previous.ckpt``: whatever
    happens, there is a whole one. Room for three is needed for a moment.

    On a signal all processes finish the step, save, and end with status 128 plus the signal's number. After SIGUSR1 in
    a SLURM job (``#SBATCH --signal=USR1@120``) the job is queued again.

    Args:
        every_n_steps: Optimizer steps between two of them.
        stop_signals: Signals that end the run at the end of a step; a second SIGINT (Ctrl-C) ends it at once.
    """

    def __init__(
        self, every_n_steps: int = 200, stop_signals: Sequence[str] = ("SIGTERM", "SIGINT", "SIGUSR1")
    ) -> None:
        self.every_n_steps = every_n_steps
        self.stop_signals = [signal.Signals[name] for name in stop_signals]
        self._saved_step = -1
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Have checkpoints of one file reach the disk."""
        trainer.strategy.checkpoint_io = _DurableCheckpointIO()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to signals from here on; Lightning's own listener would save in the middle of a step."""
        self._received = None
        for number in self.stop_signals:
            try:
                self._before[number] = signal.signal(number, self._receive)
            except ValueError:  # not the main thread, which alone may listen
                return

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where a step ended, so that a file never holds half a step.

        Raises:
            NotSavedError: If the file cannot be written; the last one is intact.
            StoppedError: If a process was asked to stop, once that is saved.
        """
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        stopping = self._is_stopping(trainer)
        step = trainer.global_step
        if (step % self.every_n_steps == 0 or _is_last(trainer) or stopping) and step != self._saved_step:
            save_resume_point(trainer)
            self._saved_step = step
        if stopping:
            self._stop(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave signals to whom they belonged."""
        self._restore_signals()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave signals to whom they belonged."""
        self._restore_signals()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self._received = signal.Signals(number)

    def _is_stopping(self, trainer: L.Trainer) -> bool:
        asked = self._received is not None
        if trainer.world_size == 1:
            return asked
        return bool(trainer.strategy.reduce_boolean_decision(asked, all=False))

    def _stop(self, trainer: L.Trainer) -> None:
        received = self._received or signal.SIGTERM  # another process's signal
        told = f"stopped by {received.name} after step {trainer.global_step}, which is saved"
        if received == signal.SIGUSR1 and (job := _slurm_job()) and trainer.is_global_zero:
            queued = subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0
            told += f"; job {job} " + ("is queued again" if queued else "could not be queued again: run it yourself")
        raise StoppedError(f"{told}; the same command continues", 0 if _is_child(trainer) else 128 + received)

    def _restore_signals(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def save_resume_point(trainer: L.Trainer) -> None:
    """Replace the root's ``last.ckpt`` by the present state; every process has to call it.

    Raises:
        NotSavedError: If that fails; ``last.ckpt`` is the old one then.
    """
    check: Callable[[], None] | None = getattr(trainer.lightning_module, "check_finite", None)
    if check is not None:
        check()
    root = Path(trainer.default_root_dir)
    last, previous, partial = root / LAST_CHECKPOINT, root / PREVIOUS_CHECKPOINT, root / (LAST_CHECKPOINT + _PARTIAL)
    if trainer.is_global_zero:
        _remove(partial)
    trainer.strategy.barrier()
    try:
        trainer.save_checkpoint(partial, weights_only=False)
        if trainer.is_global_zero:
            _sync(partial)
            if last.exists():
                _remove(previous)
                last.rename(previous)
            partial.rename(last)
            _sync(root)
    except Exception as error:
        if trainer.is_global_zero:
            _remove(partial)
        fault = explained(error)
        reason = str(fault) if fault is not None else f"{type(error).__name__}: {error}"
        kept = f"the one before, '{last}', is intact" if last.exists() else "there is none before it"
        raise NotSavedError(f"step {trainer.global_step}: '{last}' could not be written: {reason}; {kept}") from error


def find_resume_point(root: Path) -> Path | None:
    """The newest checkpoint of a run folder that is whole, if there is one.

    Raises:
        TrainingFaultError: If there are some, and none of them can be read.
    """
    found = [path for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT) if (path := root / name).exists()]
    for path in found:
        if _is_whole(path):
            return path
        print(f"'{path}' is damaged", flush=True)
    if found:
        raise TrainingFaultError(f"expected a checkpoint to continue from, got only damaged ones in '{root}'")
    return None


class _DurableCheckpointIO(TorchCheckpointIO):
    """Straight to the file and on to the disk; Lightning's own makes a copy in memory and another in ``/tmp``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a file that is on the disk when this returns."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


def _is_last(trainer: L.Trainer) -> bool:
    epochs = trainer.max_epochs
    last_epoch = epochs is not None and 0 < epochs <= trainer.current_epoch + 1
    last_batch = last_epoch and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    return trainer.global_step == trainer.max_steps or last_batch


def _is_whole(path: Path) -> bool:
    if path.is_dir():  # of FSDP2, whose descriptions are written last, or of DeepSpeed
        described = (path / ".metadata").is_file() and (path / "meta.pt").is_file()
        return described or (path / "checkpoint").is_dir()
    return zipfile.is_zipfile(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have a file, or a folder and what is directly in it, reach the disk."""
    for item in (*(path.iterdir() if path.is_dir() and path.suffix == _PARTIAL else ()), path):
        descriptor = os.open(item, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_child(trainer: L.Trainer) -> bool:
    """Whether Lightning started this process; it kills the one that did where a child ends with another status."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and trainer.local_rank > 0


def _slurm_job() -> str | None:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
