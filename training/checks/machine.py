"""Settings that want another machine than this one, refused by their key before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch


def unmet_by_machine(config: Mapping[str, Any]) -> Iterator[str]:
    """What a fit's configuration asks of a machine that this one does not have, as messages that name the key.

    Args:
        config: ``trainer`` and ``model`` as plain mappings.
    """
    if torch.cuda.is_available():
        return
    trainer = config.get("trainer") or {}
    accelerator = trainer.get("accelerator")
    if accelerator in ("gpu", "cuda"):
        yield f"trainer.accelerator: expected cpu or auto on a machine without a GPU, got '{accelerator}'"
    strategy = trainer.get("strategy")
    name = strategy.get("class_path", "") if isinstance(strategy, Mapping) else str(strategy)
    if "deepspeed" in name.lower():
        yield f"trainer.strategy: expected a strategy for CPUs on a machine without a GPU, got '{name}'"
    precision = str(trainer.get("precision"))
    if precision.startswith(("16", "transformer-engine")):
        yield f"trainer.precision: expected bf16-mixed or 32-true on a machine without a GPU, got '{precision}'"
    arguments = (config.get("model") or {}).get("init_args") or {}
    for key in ("generalist", "changes"):
        language = (arguments.get(key) or {}).get("language_model") or {}
        if (given := language.get("quantization")) is not None:
            where = f"model.init_args.{key}.language_model.quantization"
            yield f"{where}: expected null on a machine without a GPU, got {given}"
