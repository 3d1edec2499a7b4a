"""Stage 0: a tower learns from its own modality before a language model reads it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from layers.encoder import Encoder
from layers.pretrained import read_safetensors
from training.muon import muon_adamw
from training.optimizer import parameter_groups, warmup_cosine
from training.towers.data import TowerPlan
from training.towers.objectives import Encode, Outcome, TowerBatch, TowerObjective

TOWER_FILE = "tower.safetensors"


class TowerRecipe(L.LightningModule):
    """Pretrain one encoder with one objective; the encoder's weights are written when the fit ends.

    The result is ``tower.safetensors`` under the trainer's root: the encoder's state, by its names in the encoder.

    Args:
        encoder: The tower.
        objective: What it learns; its ``hidden_size`` is the encoder's.
        learning_rate: Peak of AdamW's learning rate.
        muon: Pattern -> Muon's peak learning rate, for the matrices that match; the rest is AdamW's.
        weight_decay: Of matrices; norms, biases and embeddings are not decayed.
        warmup_steps: Linear warm-up, then a cosine over the trainer's steps.
        betas: AdamW's.
        max_grad_norm: Gradients are clipped to this norm.
        seed: A step's randomness is a function of this seed and the step, so that resumed runs equal whole ones.
        init_from: A ``tower.safetensors`` of the same encoder to begin with.
        probe: Train the objective alone on the frozen encoder's features, standardised by a batch normalisation
            without parameters: a linear probe, where the objective is linear.

    Raises:
        ValueError: If the objective takes features of another width than the encoder gives, or the file holds another
            encoder's weights.
    """

    def __init__(
        self,
        encoder: Encoder,
        objective: TowerObjective,
        learning_rate: float = 1e-3,
        muon: dict[str, float] | None = None,
        weight_decay: float = 0.05,
        warmup_steps: int = 100,
        betas: tuple[float, float] = (0.9, 0.98),
        max_grad_norm: float = 1.0,
        seed: int = 0,
        init_from: str | None = None,
        probe: bool = False,
    ) -> None:
        super().__init__()
        if encoder.hidden_size != objective.hidden_size:
            raise ValueError(
                f"expected an objective for features of width {encoder.hidden_size}, got {objective.hidden_size}"
            )
        self.encoder, self.objective = encoder, objective
        if init_from is not None:
            load_tower(encoder, Path(init_from))
        self.standardise = nn.BatchNorm1d(encoder.hidden_size, affine=False) if probe else None
        if probe:
            encoder.requires_grad_(False)
        self.learning_rate, self.weight_decay, self.warmup_steps = learning_rate, weight_decay, warmup_steps
        self.muon = muon or {}
        self.betas, self.max_grad_norm, self.seed = betas, max_grad_norm, seed
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._started = 0.0

    def train(self, mode: bool = True) -> Self:
        """Switch the mode; a frozen encoder stays in evaluation."""
        super().train(mode)
        if self.standardise is not None:
            self.encoder.eval()
        return self

    def plan(self) -> TowerPlan:
        """What the data module needs."""
        return TowerPlan(self.encoder.processor, self.objective.target_rule)

    def groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """The trained parameters by learning rate and decay."""
        return parameter_groups(module, self.learning_rate, {}, self.weight_decay, self.muon)

    def configure_optimizers(self) -> Any:
        """AdamW, with Muon where it is asked for, with warm-up and a cosine, stepped per optimizer step."""
        optimizer = muon_adamw(self.groups(self), self.betas, self.trainer.precision)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, self.warmup_steps, total)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip to ``max_grad_norm`` and log the norm."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.max_grad_norm)
        self.log("train/grad_norm", norm)

    def on_train_batch_start(self, batch: TowerBatch, batch_idx: int) -> None:
        """Seed the step."""
        torch.manual_seed(self.seed * 1_000_003 + self.global_step)
        self._started = time.perf_counter()

    def training_step(self, batch: TowerBatch, batch_idx: int) -> Tensor:
        """The weighted sum of the objective's losses."""
        outcome = self._compare(batch)
        loss = torch.zeros((), device=self.device)
        for name, term in outcome.losses.items():
            mean = term.total / max(term.count, 1)
            loss = loss + self.objective.loss_weights.get(name, 1.0) * mean
            self.log(f"train/{name}", mean.detach(), batch_size=len(batch.items))
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch.items))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: TowerBatch, batch_idx: int) -> None:
        """Log the throughput of the step alone, without the wait for data."""
        self.log("speed/items_per_second", len(batch.items) / (time.perf_counter() - self._started))

    def on_validation_epoch_start(self) -> None:
        """Begin to add up."""
        self._sums = {}

    def validation_step(self, batch: TowerBatch, batch_idx: int) -> None:
        """Add up losses and metrics as sums and counts."""
        with torch.random.fork_rng():
            torch.manual_seed(batch_idx)
            outcome = self._compare(batch)
        losses = {name: (term.total.double(), term.count) for name, term in outcome.losses.items()}
        for name, (total, count) in {**losses, **outcome.metrics}.items():
            before = self._sums.get(name, (torch.zeros((), dtype=torch.float64), 0))
            self._sums[name] = (before[0] + total.detach().to("cpu", torch.float64), before[1] + count)

    def on_validation_epoch_end(self) -> None:
        """Log means over the whole split."""
        for name, (total, count) in self._sums.items():
            self.log(f"val/{name}", (total / max(count, 1)).float(), prog_bar=name not in ("ctc",))

    def on_train_end(self) -> None:
        """Write the tower."""
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            save_tower(self.encoder, Path(self.trainer.default_root_dir) / TOWER_FILE)

    def _compare(self, batch: TowerBatch) -> Outcome:
        outcome: Outcome = self.objective(Encode(self.encoder, batch.layout, self.standardise), batch)
        return outcome


def load_tower(encoder: Encoder, path: Path) -> None:
    """Read what :func:`save_tower` wrote.

    Raises:
        ValueError: If the file cannot be read, or tensors are missing, unknown or of another shape; nothing is loaded
            then.
    """
    tensors = read_safetensors(path)
    state = encoder.state_dict()
    missing = sorted(set(state) - set(tensors))
    wrong = sorted(name for name, value in tensors.items() if name not in state or state[name].shape != value.shape)
    if missing or wrong:
        raise ValueError(
            f"'{path}': expected a {type(encoder).__name__} of this shape, missing {missing[:5]}, "
            f"unexpected or of another shape {wrong[:5]}"
        )
    encoder.load_state_dict(tensors)


def save_tower(encoder: Encoder, path: Path) -> None:
    """Write an encoder's state as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = encoder.state_dict()
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}, path)
