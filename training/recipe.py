"""The recipe: one LightningModule that trains whatever parts of a Generalist a stage's YAML names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from layers.batch import Batch, Step
from layers.head import LossTerm
from models.build import build_generalist, plain_config, validate_config
from models.checkpoint import WEIGHTS, CheckpointError, save_checkpoint
from models.generalist import TOKEN_LOSS, Generalist
from models.plan import BatchPlan
from training.muon import muon_adamw
from training.optimizer import global_grad_norm, parameter_groups, set_trainable, warmup_cosine


@dataclass
class InitFrom:
    """Where a stage takes weights from.

    Args:
        path: A safetensors file, or a checkpoint directory.
        prefix: Where its tensors go, such as ``encoders.image.``; empty for a whole model.
        allow_new: Patterns of this model's tensors under ``prefix`` that the source need not have.
    """

    path: str
    prefix: str = ""
    allow_new: tuple[str, ...] = ()


_MEDIA = "media/"  # before a modality's name, among the counts of a step


class Recipe(L.LightningModule):
    """Train a Generalist.

    The objective of an optimizer step is ``Σ_h w_h · Σ sum_h / Σ count_h`` over all its packs and all ranks, so that
    accumulation and the number of processes change nothing.

    Args:
        generalist: Arguments of :class:`models.generalist.Generalist`; nested parts are ``{class_path, init_args}``. A
            plain dictionary: with typed values the command line would build the parts before the strategy is ready.
        trainable: Patterns (``re.search``) of the parameters that are trained; the rest is frozen, and a part that is
            frozen as a whole stays in eval mode.
        init_from: Weights to begin with, in order.
        learning_rate: Peak learning rate.
        learning_rates: Pattern -> another peak learning rate; the first match counts.
        muon: Pattern -> Muon's peak learning rate, for the matrices that match; the rest is AdamW's.
        weight_decay: AdamW's decay of matrices (not of embeddings, norms, biases).
        betas: AdamW's.
        warmup_steps: Linear warm-up, then a cosine to 2 %.
        max_grad_norm: Gradients are clipped to this norm; 0 leaves them.
        loss_weights: Loss name ("token" or a head) -> weight, over those of the task table.
        seed: Seed of whatever is random within a step; a step's randomness depends on it and the step's number only.
        export: Folder of the checkpoint directory written at the end of a fit, under the trainer's root; None: none.
    """

    def __init__(
        self,
        generalist: dict,
        trainable: list[str],
        init_from: list[InitFrom] | None = None,
        learning_rate: float = 1e-3,
        learning_rates: dict[str, float] | None = None,
        muon: dict[str, float] | None = None,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.98),
        warmup_steps: int = 100,
        max_grad_norm: float = 1.0,
        loss_weights: dict[str, float] | None = None,
        seed: int = 0,
        export: str | None = "checkpoint",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generalist_config: dict[str, Any] = plain_config(generalist)
        self.save_hyperparameters(ignore=["generalist", "init_from"])
        validate_config(self.generalist_config)
        self.trainable = trainable
        self.init_from = init_from or []
        self.learning_rate = learning_rate
        self.learning_rates = learning_rates or {}
        self.muon = muon or {}
        self.weight_decay = weight_decay
        self.betas = betas
        self.warmup_steps = warmup_steps
        self.max_grad_norm = max_grad_norm
        self.loss_weights = loss_weights or {}
        self.seed = seed
        self.export = export
        self._generalist: list[Generalist] = []

    def plan(self) -> BatchPlan:
        """The batch plan, from a model without weights."""
        with torch.device("meta"):
            return build_generalist(self.generalist_config).plan()

    def configure_model(self) -> None:
        """Build, then load; called by the trainer within its strategy."""
        if hasattr(self, "generalist"):
            return
        generalist = build_generalist(self.generalist_config)
        for source in self.init_from:
            load_weights(generalist, source)
        set_trainable(generalist, self.trainable)
        self.generalist = generalist
        self.weights = self._resolve_loss_weights(generalist)

    def configure_optimizers(self) -> Any:
        """AdamW (fused), with Muon where it is asked for, and the schedule of both."""
        groups = parameter_groups(
            self.generalist, self.learning_rate, self.learning_rates, self.weight_decay, self.muon
        )
        optimizer = muon_adamw(groups, self.betas, self.trainer.precision)
        total = int(self.trainer.estimated_stepping_batches)
        if total < 0 or total > 10**9:
            raise ValueError(f"trainer.max_steps: expected the length of the schedule, got {self.trainer.max_steps}")
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: warmup_cosine(s, self.warmup_steps, total))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def transfer_batch_to_device(self, batch: Step, device: torch.device, dataloader_idx: int) -> Step:
        """Move a step."""
        return batch.to(device)

    def training_step(self, batch: Step, batch_idx: int) -> None:
        """One optimizer step over all packs of ``batch``."""
        optimizer: Any = self.optimizers()
        torch.manual_seed(_step_seed(self.seed, self.global_step, self.global_rank))
        counts = self._global_counts(batch.counts | _media_counts(batch))
        sums: dict[str, Tensor] = {}
        for index, pack in enumerate(batch.packs):
            with nullcontext() if index == len(batch.packs) - 1 else self._no_sync():
                losses = self.generalist(pack)
                self.manual_backward(self.objective(losses, counts) * self.trainer.world_size)
            for name, term in losses.items():
                for part, value in ({"": term.total} | term.parts).items():
                    key = f"{name}/{part}" if part else name
                    sums[key] = sums.get(key, torch.zeros((), device=self.device)) + value.detach()
        self._release_untouched(counts)
        parameters = [p for p in self.generalist.parameters() if p.grad is not None]
        norm = global_grad_norm(parameters)
        if self.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        self._log_losses("train", sums, counts)
        self.log("train/grad_norm", norm)
        self.log("train/token", sums[TOKEN_LOSS] / max(1, counts[TOKEN_LOSS]), prog_bar=True, logger=False)

    def validation_step(self, batch: Step, batch_idx: int) -> None:
        """Sum the losses of held-out packs; they are normalised at the end of the epoch."""
        torch.manual_seed(_step_seed(self.seed, batch_idx, 0))
        for pack in batch.packs:
            for name, term in self.generalist(pack).items():
                total, count = self._validation.get(name, (0.0, 0))
                self._validation[name] = (total + float(term.total), count + term.count)

    def on_validation_epoch_start(self) -> None:
        """Begin new sums."""
        self._validation: dict[str, tuple[float, int]] = {}

    def on_validation_epoch_end(self) -> None:
        """Log held-out losses per task and head."""
        for name, (total, count) in sorted(self._validation.items()):
            self.log(f"val/{name}", total / max(1, count), sync_dist=True)

    def on_fit_end(self) -> None:
        """Export the checkpoint directory."""
        if self.export is not None and self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            root = Path(self.trainer.default_root_dir)
            hashes = getattr(getattr(self.trainer, "datamodule", None), "data_hashes", {})
            save_checkpoint(self.generalist, self.generalist_config, root / self.export, hashes)

    def objective(self, losses: Mapping[str, LossTerm], counts: Mapping[str, float]) -> Tensor:
        """A pack's share of the step's objective; a zero count contributes 0."""
        terms = [self.weights[name] * term.total / max(1.0, counts.get(name, 0)) for name, term in losses.items()]
        return torch.stack(terms).sum()

    def _global_counts(self, counts: Mapping[str, int]) -> dict[str, float]:
        names = sorted({*self.weights, *(f"{_MEDIA}{kind}" for kind in self.generalist.encoders)})
        values = torch.tensor([counts.get(name, 0) for name in names], dtype=torch.float64, device=self.device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(values)
        return dict(zip(names, values.tolist(), strict=True))

    def _release_untouched(self, counts: Mapping[str, float]) -> None:
        """Leave no gradient, not even a zero, to parts that no process's packs have used.

        Every parameter takes part in the graph, if only with a zero, so that all processes run the same collectives. An
        optimizer would take the zero for news: Muon gives its momentum the full length of a step whatever its size, and
        AdamW goes on in the direction of the last one.
        """
        generalist = self.generalist
        parts = [part for name, part in generalist.heads.items() if not counts[name]]
        for modules in (generalist.encoders, generalist.projectors):
            parts += [part for kind, part in modules.items() if not counts[f"{_MEDIA}{kind}"]]
        for part in parts:
            for parameter in part.parameters():
                parameter.grad = None

    def _no_sync(self) -> Any:
        model: Any = self.trainer.model
        return model.no_sync() if hasattr(model, "no_sync") else nullcontext()

    def _log_losses(self, stage: str, sums: Mapping[str, Tensor], counts: Mapping[str, float]) -> None:
        values = {
            f"{stage}/loss_{name}": value / counts[name.split("/")[0]]
            for name, value in sums.items()
            if counts[name.split("/")[0]]
        }
        self.log_dict(values)

    def _resolve_loss_weights(self, generalist: Generalist) -> dict[str, float]:
        weights = {TOKEN_LOSS: 1.0} | {name: 1.0 for name in generalist.heads}
        weights |= {task.head: task.loss_weight for task in generalist.tasks}
        unknown = sorted(set(self.loss_weights) - set(weights))
        if unknown:
            raise ValueError(f"loss_weights: expected some of {sorted(weights)}, got {unknown}")
        return weights | self.loss_weights


def load_weights(generalist: Generalist, source: InitFrom) -> None:
    """Copy a source's tensors into the model, strictly.

    Raises:
        CheckpointError: If the source is missing, or its tensors do not fit, naming them.
    """
    path = Path(source.path)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"init_from: expected a safetensors file or a checkpoint directory, got '{path}'")
    tensors = {source.prefix + name: tensor for name, tensor in load_file(file).items()}
    state = {name: value for name, value in generalist.state_dict().items() if name.startswith(source.prefix)}
    tied = {value.data_ptr() for name, value in state.items() if name in tensors}
    new = [re.compile(pattern) for pattern in source.allow_new]
    missing = [
        name
        for name, value in state.items()
        if name not in tensors and value.data_ptr() not in tied and not any(p.search(name) for p in new)
    ]
    wrong = [name for name, value in tensors.items() if name not in state or state[name].shape != value.shape]
    if missing or wrong:
        raise CheckpointError(f"init_from '{path}': missing {missing[:5]}, unexpected or of another shape {wrong[:5]}")
    generalist.load_state_dict(tensors, strict=False)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 4_093 + rank


def _media_counts(step: Step) -> dict[str, int]:
    """Items of each modality in a step's packs."""
    counts: dict[str, int] = {}
    for pack in step.packs:
        for kind, media in pack.media.items():
            counts[f"{_MEDIA}{kind}"] = counts.get(f"{_MEDIA}{kind}", 0) + len(media.items)
    return counts


__all__ = ["Batch", "InitFrom", "Recipe", "load_weights"]
