"""Train with the Lightning CLI: ``python train.py fit --config configs/quickstart/model.yaml --config STAGE.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI


class TrainCLI(LightningCLI):
    """The CLI; a fit resumes from ``last.ckpt`` of its run folder unless it is told otherwise."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The data module renders for the model that it feeds."""
        parser.link_arguments("model", "data.init_args.plan", compute_fn=lambda m: m.plan(), apply_on="instantiate")

    def before_fit(self) -> None:
        """Continue an interrupted run."""
        last = Path(self.trainer.default_root_dir) / "last.ckpt"
        if last.is_file() and not self.config_init["fit"].get("ckpt_path"):
            self.config_init["fit"]["ckpt_path"] = str(last)


def main(arguments: list[str] | dict[str, Any] | None = None) -> TrainCLI:
    """Run the CLI with these arguments, or with the command line's."""
    return TrainCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"parser_mode": "yaml"},
        args=arguments,
    )


if __name__ == "__main__":
    main()
