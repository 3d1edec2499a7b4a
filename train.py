"""Train with the Lightning CLI.

python train.py fit --config configs/quickstart/model.yaml --config configs/quickstart/stage1_alignment.yaml
"""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from training.cli import TrainCLI
from training.faults import TrainingFaultError


def main(arguments: list[str] | dict[str, Any] | None = None) -> TrainCLI:
    """Run the CLI with these arguments, or with the command line's."""
    return TrainCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        args=arguments,
    )


if __name__ == "__main__":
    try:
        main()
    except TrainingFaultError as fault:
        sys.exit(f"error: {fault}")
