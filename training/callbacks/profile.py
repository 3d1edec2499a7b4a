"""Where the time of a step goes: a trace of a few steps, and a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile, schedule


class ProfileSteps(Callback):
    """Write ``profile/rank0.json`` (for chrome://tracing or ui.perfetto.dev) and ``profile/rank0.txt`` under the root.

    Args:
        first: Step at which it begins, once everything is warm.
        steps: How many are traced.
        memory: Whether allocations are traced too.
        shapes: Whether the shapes of operands are kept.
    """

    def __init__(self, first: int = 10, steps: int = 3, memory: bool = False, shapes: bool = False) -> None:
        if first < 1 or steps < 1:
            raise ValueError(f"ProfileSteps: expected first and steps of at least 1, got {first} and {steps}")
        self.first, self.steps, self.memory, self.shapes = first, steps, memory, shapes
        self._profile: profile | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait for the first step."""
        activities = [ProfilerActivity.CPU]
        if pl_module.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=self.first - 1, warmup=1, active=self.steps, repeat=1),
            on_trace_ready=lambda made: self._write(made, trainer),
            profile_memory=self.memory,
            record_shapes=self.shapes,
        )
        self._profile.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step."""
        if self._profile is not None:
            self._profile.step()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End a trace that is still open."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, made: profile, trainer: L.Trainer) -> None:
        folder = Path(trainer.default_root_dir) / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        trace = folder / f"rank{trainer.global_rank}.json"
        made.export_chrome_trace(str(trace))
        key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = made.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=60)
        trace.with_suffix(".txt").write_text(f"{table}\n")
        if trainer.is_global_zero:
            print(f"profile of {self.steps} steps: {trace}", flush=True)
