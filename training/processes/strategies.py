"""Lightning's strategies for many processes, and what this recipe asks of them.

``--trainer.strategy`` takes ``ddp`` (the model is whole in every process), ``fsdp2``
(:class:`FullyShardedStrategy`) and, on CUDA, ``deepspeed_stage_1`` and ``deepspeed_stage_2``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    StrategyRegistry,
)

from training.processes.lockstep import many_processes
from training.processes.sharding import is_sharded, shard

if TYPE_CHECKING:
    from models.generalist import Generalist


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes: Lightning's ModelParallelStrategy, whose ``data_parallel_size`` is their number.

    See :mod:`training.processes.sharding` for what is spread and what is not.

    Args:
        shard_frozen: Spread frozen parameters too, for a language model that does not fit otherwise.
        reshard_after_forward: Let go of a layer's parameters between its forward and its backward pass. Without it they
            stay for the whole pack: more memory, less communication.
        save_distributed_checkpoint: Every process writes its part, and ``last.ckpt`` is a folder, which another number
            of processes can read. Without it the first process gathers everything and writes one file.
        process_group_backend: ``nccl`` or ``gloo``; by default what suits the devices.
        timeout_minutes: How long a process waits for another before it gives up.
    """

    def __init__(
        self,
        shard_frozen: bool = False,
        reshard_after_forward: bool = True,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout_minutes: float = 30.0,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timedelta(minutes=timeout_minutes),
        )
        self.shard_frozen, self.reshard_after_forward = shard_frozen, reshard_after_forward

    def setup_environment(self) -> None:
        """Join the other processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def register_strategies() -> None:
    """Have ``--trainer.strategy fsdp2`` mean :class:`FullyShardedStrategy`."""
    StrategyRegistry.register("fsdp2", FullyShardedStrategy, description="FSDP2 over all processes", override=True)


def check_strategy(trainer: Trainer, uses_muon: bool, keeps_features: bool, max_grad_norm: float) -> None:
    """Refuse what a recipe cannot train with, before anything is built.

    Args:
        trainer: With its strategy and precision.
        uses_muon: Whether some matrices are Muon's.
        keeps_features: Whether frozen encoders run outside the model's forward.
        max_grad_norm: DeepSpeed clips to it by itself.

    Raises:
        ValueError: Naming the argument, what was expected and what was given.
    """
    strategy: Any = trainer.strategy
    if isinstance(strategy, ModelParallelStrategy) and strategy._tensor_parallel_size not in (1, "auto"):
        raise ValueError(
            f"trainer.strategy: expected tensor_parallel_size 1, got {strategy._tensor_parallel_size}; "
            "set data_parallel_size to the number of processes, or use fsdp2"
        )
    if isinstance(strategy, DeepSpeedStrategy):
        config: dict[str, Any] = strategy.config or {}
        stage = config.get("zero_optimization", {}).get("stage", 0)
        if stage not in (1, 2):
            raise ValueError(
                f"trainer.strategy: expected DeepSpeed's ZeRO stage 1 or 2, got {stage}; use fsdp2 instead"
            )
        if uses_muon:
            raise ValueError("model.init_args.muon: DeepSpeed cuts matrices into flat pieces; expected none, got some")
        config["gradient_clipping"] = max_grad_norm
    elif not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy):
        raise ValueError(
            "trainer.strategy: expected ddp, fsdp2, deepspeed_stage_1 or deepspeed_stage_2, "
            f"got {type(strategy).__name__}"
        )
    if keeps_features and getattr(strategy, "shard_frozen", False):
        raise ValueError("model.init_args.features: expected encoders that are whole, got shard_frozen of fsdp2")
    if str(trainer.precision).startswith("16"):
        raise ValueError(
            f"trainer.precision: expected bf16-mixed, bf16-true or 32-true, got {trainer.precision}: "
            "losses would have to be scaled"
        )


def uses_deepspeed(trainer: Trainer) -> bool:
    """Whether gradients are DeepSpeed's business, clipping included."""
    return isinstance(trainer.strategy, DeepSpeedStrategy)


def is_sharding(strategy: Any) -> bool:
    """Whether a strategy is FSDP2: ours, or Lightning's own."""
    return isinstance(strategy, ModelParallelStrategy)


def spread(module: LightningModule, generalist: Generalist) -> None:
    """Shard a model as its trainer's strategy says.

    Under bf16-mixed the language model's layers are gathered and computed in bfloat16, and their gradients are reduced
    in float32; the other parts stay in float32, with autocast.
    """
    strategy, mesh = module.trainer.strategy, module.device_mesh
    assert mesh is not None
    shard(
        module,
        generalist,
        mesh["data_parallel"],
        strategy.root_device,
        torch.bfloat16 if str(module.trainer.precision) == "bf16-mixed" else None,
        getattr(strategy, "shard_frozen", False),
        getattr(strategy, "reshard_after_forward", True),
    )


@contextmanager
def exchange_gradients(module: Any, last: bool) -> Iterator[None]:
    """What surrounds a pack's forward and backward pass.

    DDP exchanges gradients after a step's last pack. FSDP2 does so after each, since the sum of whole gradients would
    need the memory that sharding saves.

    Args:
        module: The recipe.
        last: Whether the pack is the step's last.
    """
    model, generalist = module.trainer.model, module.generalist
    sharded, how = is_sharded(generalist), "visits"
    if uses_deepspeed(module.trainer):
        model.set_gradient_accumulation_boundary(last)
        last, how = True, "zeros"
    generalist.in_step = how if many_processes() and (sharded or last) else False
    with nullcontext() if last or sharded or not hasattr(model, "no_sync") else model.no_sync():
        yield
