"""The recipe: one LightningModule that trains whatever parts of a Generalist a stage's YAML names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor

from layers.batch import Batch, Step
from layers.head import LossTerm
from models.build import build_generalist, merge_config, plain_config, validate_config
from models.checkpoint import save_checkpoint
from models.generalist import TOKEN_LOSS, Generalist
from models.plan import BatchPlan
from models.tokenizer import load_tokenizer
from routers.router import ROUTER_LOSS
from training.acceleration import Acceleration, accelerate
from training.balance import Balance, BalancedAdamW
from training.faults import FiniteGuard, memory_explained
from training.frozen_features import FeatureKeeper, FrozenFeatures, check_frozen
from training.init_from import InitFrom, check_sources, load_weights
from training.moving_average import MovingAverage
from training.muon import muon_adamw
from training.optimizer import clip_gradients, global_grad_norm, parameter_groups, set_trainable, warmup_cosine
from training.precision import suit_precision
from training.processes.lockstep import (
    MEDIA,
    MOST_PACKS,
    add_up,
    empty_pack,
    many_processes,
    settle_untouched,
    step_totals,
)
from training.processes.sharding import built_once, is_sharded, reshard, whole_state
from training.processes.strategies import check_strategy, exchange_gradients, is_sharding, spread, uses_deepspeed


class Recipe(L.LightningModule):
    """Train a Generalist.

    The objective of an optimizer step is ``Σ_h w_h · Σ sum_h / Σ count_h`` over all its packs and all ranks, so that
    accumulation and the number of processes change nothing.

    A trainer that is no plain supervised step is a subclass in a file of its own that overrides what differs:

    ==============================  ====================================================================================
    :meth:`pack_losses`             What is learned from a pack, as sums and counts: preference pairs against a
                                    reference, a teacher's distribution, a hint beside the task.
    :attr:`own_losses`,             The names and weights of losses that no head has, and how many of them a pack holds,
    :meth:`pack_counts`             known before the first forward.
    :meth:`prepare`                 Parts beside the model once it is built and loaded: a frozen reference, a teacher.
    :meth:`accumulate`              How a step's losses become gradients: inner steps of meta-learning, many rollouts.
    :meth:`make_optimizer`          Who moves the parameters, and :meth:`optimize` when; an optimizer that needs no
                                    gradient leaves ``accumulate`` without a backward.
    :meth:`update`                  All of a step: seeded perturbations (zeroth order), or a population (evolution).
    ==============================  ====================================================================================

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
        balance: Gradients balanced over the sources of unmixed steps
            (:class:`training.balance.BalancedAdamW`), instead of AdamW and Muon.
        max_grad_norm: Gradients are clipped to this norm; 0 leaves them. Balanced ones have a length already.
        loss_weights: Loss name ("token" or a head) -> weight, over those of the task table.
        seed: Seed of whatever is random within a step; a step's randomness depends on it and the step's number only.
        export: Folder of the checkpoint directory written at the end of a fit, under the trainer's root; None: none.
        acceleration: Recomputed or compiled layers, products in eight bits.
        features: Keep what frozen encoders give on disk, and run them once per item.
        changes: What a stage changes in ``generalist``, merged over it mapping by mapping: an adapter, a head.
        average_decay: Decay of a moving average of the weights, which is validated and exported; None: none.
        extra_classes: Class paths of parts of your own that ``generalist`` names, such as "my_heads.CountHead".
    """

    own_losses: ClassVar[Mapping[str, float]] = {}
    """Losses that a subclass adds -> their weights."""

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
        balance: Balance | None = None,
        max_grad_norm: float = 1.0,
        loss_weights: dict[str, float] | None = None,
        seed: int = 0,
        export: str | None = "checkpoint",
        acceleration: Acceleration | None = None,
        features: FrozenFeatures | None = None,
        average_decay: float | None = None,
        changes: dict | None = None,
        extra_classes: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generalist_config: dict[str, Any] = merge_config(plain_config(generalist), plain_config(changes or {}))
        self.save_hyperparameters(ignore=["generalist", "init_from", "balance", "acceleration", "features", "changes"])
        self.extra_classes = extra_classes or []
        validate_config(self.generalist_config, self.extra_classes)
        self.trainable = trainable
        self.init_from = init_from or []
        self.learning_rate = learning_rate
        self.learning_rates = learning_rates or {}
        self.muon = muon or {}
        self.weight_decay, self.betas = weight_decay, betas
        self.warmup_steps = warmup_steps
        self.balance = balance
        self.max_grad_norm = max_grad_norm
        self.loss_weights = loss_weights or {}
        self.seed, self.export = seed, export
        self.acceleration = acceleration or Acceleration()
        self.features = features
        self.keeper: FeatureKeeper | None = None
        self.average_decay = average_decay
        self.average: MovingAverage | None = None
        self.finite = FiniteGuard()
        self.grad_norm: Tensor | None = None

    def plan(self) -> BatchPlan:
        """The batch plan, from a model without weights."""
        return self.skeleton().plan()

    def skeleton(self) -> Generalist:
        """The model without weights, frozen as it will be; refuses what does not fit before anything is loaded.

        Raises:
            ValueError: For a part, a pattern or a weight that does not fit, naming its key.
        """
        with torch.device("meta"):
            generalist = build_generalist(self.generalist_config, self.extra_classes)
        set_trainable(generalist, self.trainable)
        self.groups(generalist)
        self._resolve_loss_weights(generalist)
        if self.features is not None:
            check_frozen(self.features, generalist)
        return generalist

    def setup(self, stage: str) -> None:
        """Refuse data that the optimizer cannot take.

        Raises:
            ValueError: If gradients are balanced and steps are mixed, or a weight names no source.
        """
        mixture = getattr(getattr(self.trainer, "datamodule", None), "mixture", None)
        if self.balance is None or mixture is None or stage != "fit":
            return
        if self.muon:
            raise ValueError("model.init_args.balance: expected no model.init_args.muon beside it, got some")
        if not mixture.unmixed:
            raise ValueError("model.init_args.balance: expected data.init_args.mixture.unmixed: true, got mixed steps")
        titles = [source.title for source in self.trainer.datamodule.sources]  # type: ignore[attr-defined]
        unknown = sorted(set(self.balance.weights) - set(titles))
        if unknown:
            raise ValueError(f"model.init_args.balance.weights: expected sources {titles}, got {unknown}")

    def configure_model(self) -> None:
        """Build and load, then spread over the processes where the strategy does; called by the trainer within it."""
        if hasattr(self, "generalist"):
            return
        trainer = self._trainer
        if trainer is not None:
            check_strategy(trainer, bool(self.muon), self.features is not None, self.max_grad_norm)
        check_sources(self.init_from, load_tokenizer(self.generalist_config["tokenizer"]))
        sharded = trainer is not None and is_sharding(trainer.strategy)
        with built_once(self.global_rank if sharded else 0):
            generalist = build_generalist(self.generalist_config, self.extra_classes)
            for source in self.init_from if not sharded or self.global_rank == 0 else ():
                load_weights(generalist, source)
        set_trainable(generalist, self.trainable)
        if trainer is not None:
            suit_precision(generalist.parameters(), str(trainer.precision))
        self.generalist = generalist
        self.weights = self._resolve_loss_weights(generalist)
        self.prepare()
        accelerate(generalist, self.acceleration)
        if sharded:
            spread(self, generalist)
        if self.average_decay is not None:
            self.average = MovingAverage(generalist, self.average_decay)

    def prepare(self) -> None:
        """Add what a subclass needs beside the model, which is built, loaded and partly frozen by now."""

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule."""
        optimizer = self.make_optimizer(self.groups(self.generalist))
        total = int(self.trainer.estimated_stepping_batches)
        if total < 0 or total > 10**9:
            raise ValueError(f"trainer.max_steps: expected the length of the schedule, got {self.trainer.max_steps}")
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: warmup_cosine(s, self.warmup_steps, total))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def groups(self, generalist: Generalist) -> list[dict[str, Any]]:
        """The trained parameters by learning rate and decay."""
        return parameter_groups(generalist, self.learning_rate, self.learning_rates, self.weight_decay, self.muon)

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """AdamW (fused), with Muon where it is asked for; or the balanced one."""
        if self.balance is not None:
            return BalancedAdamW(groups, self.betas)
        return muon_adamw(groups, self.betas, self.trainer.precision)

    def transfer_batch_to_device(self, batch: Step, device: torch.device, dataloader_idx: int) -> Step:
        """Move a step."""
        return batch.to(device)

    def training_step(self, batch: Step, batch_idx: int) -> None:
        """One optimizer step over all packs of ``batch``."""
        step, own = self.global_step, self.step_counts(batch)
        torch.manual_seed(_step_seed(self.seed, step, self.global_rank))
        counts = self._global_counts(own, len(batch.packs))
        with memory_explained(step, batch.packs):
            sums = self.update(batch, counts)
        if self.grad_norm is not None:
            self.finite.note(step, self.grad_norm, sums, [key for pack in batch.packs for key in pack.keys if key])
        if self.average is not None:
            self.average.update(self.generalist, step)
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        self._log_losses("train", sums, counts)
        self.log("train/token", sums[TOKEN_LOSS] / max(1, own[TOKEN_LOSS]), prog_bar=True, logger=False)

    def check_finite(self) -> None:
        """Refuse to save what an infinite gradient has spoilt."""
        self.finite.check()

    def update(self, batch: Step, counts: Mapping[str, float]) -> dict[str, Tensor]:
        """Move the parameters by what a step's packs say.

        Args:
            batch: This process's packs.
            counts: Denominators over the packs of all processes.

        Returns:
            Loss name -> detached sum over this process's packs, for the log.
        """
        sums = self.accumulate(batch, counts)
        if not uses_deepspeed(self.trainer):
            settle_untouched(self.generalist, counts)
        self.optimize(batch)
        return sums

    def accumulate(self, batch: Step, counts: Mapping[str, float]) -> dict[str, Tensor]:
        """Add up the gradients of a step's packs; arguments and result as of :meth:`update`.

        What is random in a pack depends on its number within the step, over all processes, and not on how many these
        are. A process whose packs run out before another's goes on with an empty one where layers are sharded,
        or a head compares the calls of all processes.
        """
        sums: dict[str, Tensor] = {}
        packs = list(batch.packs)
        if is_sharded(self.generalist) or any(head.gathers for head in self.generalist.heads.values()):
            packs += [empty_pack(self.generalist, packs[-1])] * (int(counts[MOST_PACKS]) - len(packs))
        for index, pack in enumerate(packs):
            number = index * self.trainer.world_size + self.global_rank
            torch.manual_seed(_step_seed(self.seed, self.global_step, number))
            with exchange_gradients(self, last=index == len(packs) - 1):
                losses = self.pack_losses(pack)
                self.manual_backward(self.objective(losses, counts) * self.trainer.world_size)
            for name, term in losses.items():
                for part, value in ({"": term.total} | term.parts).items():
                    key = f"{name}/{part}" if part else name
                    sums[key] = sums.get(key, torch.zeros((), device=self.device)) + value.detach()
        return sums

    def optimize(self, batch: Step) -> None:
        """Clip the gradients, have the optimizer step, and forget them."""
        optimizer: Any = self.optimizers()
        parameters = [p for p in self.generalist.parameters() if p.grad is not None]
        norm = global_grad_norm(parameters)
        if self.balance is not None:
            assert batch.source is not None and batch.probability is not None  # see setup
            optimizer.optimizer.set_task(batch.probability, self.balance.weights.get(batch.source, 1.0))
        elif self.max_grad_norm > 0:
            clip_gradients(parameters, self.max_grad_norm, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.grad_norm = norm
        self.log("train/grad_norm", norm)

    def on_fit_start(self) -> None:
        """Open the features that are kept; data workers look there first."""
        if self.features is not None:
            self.keeper = FeatureKeeper(self.features, self.generalist, str(self.trainer.precision))
            if (data := getattr(self.trainer, "datamodule", None)) is not None:
                data.features = self.keeper.lookup

    def pack_losses(self, pack: Batch) -> dict[str, LossTerm]:
        """What is learned from a pack, as sums and counts by name."""
        if self.keeper is not None:
            self.keeper.complete(pack)
        losses: dict[str, LossTerm] = self.generalist(pack)
        return losses

    def pack_counts(self, pack: Batch) -> dict[str, int]:
        """What a pack adds to the denominators of :meth:`pack_losses`, known before the forward."""
        return pack.counts

    def step_counts(self, batch: Step) -> dict[str, int]:
        """The denominators over this process's packs, and the items of every modality."""
        counts: dict[str, int] = {}
        for pack in batch.packs:
            media = {f"{MEDIA}{kind}": len(items.items) for kind, items in pack.media.items()}
            for name, count in (self.pack_counts(pack) | media).items():
                counts[name] = counts.get(name, 0) + count
        return counts

    def validation_step(self, batch: Step, batch_idx: int) -> None:
        """Sum the losses of held-out packs; they are normalised at the end of the epoch."""
        number = batch_idx * self.trainer.world_size + self.global_rank
        torch.manual_seed(_step_seed(self.seed, number, 0))
        for pack in batch.packs or ([empty_pack(self.generalist)] if is_sharded(self.generalist) else []):
            for name, term in self.pack_losses(pack).items():
                total, count = self._validation.get(name, (0.0, 0))
                self._validation[name] = (total + float(term.total), count + term.count)

    def on_validation_epoch_start(self) -> None:
        """Begin new sums."""
        self._validation: dict[str, tuple[float, int]] = {}
        if self.average is not None:
            self.average.swap(self.generalist)

    def on_validation_epoch_end(self) -> None:
        """Log held-out losses per task and head, over the packs of all processes."""
        reshard(self.generalist)
        if self.average is not None:
            self.average.swap(self.generalist)
        for name, (total, count) in sorted(add_up(self._validation).items()):
            self.log(f"val/{name}", total / max(1, count), sync_dist=True)

    def on_fit_end(self) -> None:
        """Export the checkpoint directory."""
        if self.keeper is not None:
            self.keeper.flush()
            if self.trainer.is_global_zero:
                print(f"features: {self.keeper.report()}", flush=True)
        if self.export is None or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.average is not None:
            self.average.swap(self.generalist)
        state = whole_state(self.generalist) if is_sharded(self.generalist) else None
        if self.trainer.is_global_zero:
            root = Path(self.trainer.default_root_dir)
            hashes = getattr(getattr(self.trainer, "datamodule", None), "data_hashes", {})
            save_checkpoint(self.generalist, self.generalist_config, root / self.export, hashes, state)

    def objective(self, losses: Mapping[str, LossTerm], counts: Mapping[str, float]) -> Tensor:
        """A pack's share of the step's objective; a zero count contributes 0."""
        terms = [self.weights[name] * term.total / max(1.0, counts.get(name, 0)) for name, term in losses.items()]
        return torch.stack(terms).sum()

    def _global_counts(self, counts: Mapping[str, int], num_packs: int) -> dict[str, float]:
        names = sorted({*self.weights, *(f"{MEDIA}{kind}" for kind in self.generalist.encoders)})
        return step_totals(counts, num_packs, names, self.device)

    def _log_losses(self, stage: str, sums: Mapping[str, Tensor], counts: Mapping[str, float]) -> None:
        if many_processes():
            if self.global_step % self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
                return
            sums = {
                name: torch.tensor(v) for name, (v, _) in add_up({n: (float(v), 1) for n, v in sums.items()}).items()
            }
        values = {
            f"{stage}/loss_{name}": value / counts[name.split("/")[0]]
            for name, value in sums.items()
            if counts[name.split("/")[0]]
        }
        self.log_dict(values)

    def _resolve_loss_weights(self, generalist: Generalist) -> dict[str, float]:
        router = {ROUTER_LOSS: generalist.router.loss_weight} if generalist.router.learns else {}
        weights = {TOKEN_LOSS: 1.0, **self.own_losses, **router} | {name: 1.0 for name in generalist.heads}
        weights |= {task.head: task.loss_weight for task in generalist.tasks}
        unknown = sorted(set(self.loss_weights) - set(weights))
        if unknown:
            raise ValueError(f"model.init_args.loss_weights: expected some of {sorted(weights)}, got {unknown}")
        return weights | self.loss_weights


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 4_093 + rank
