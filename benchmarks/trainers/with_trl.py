"""Arm: TRL's SFTTrainer, random order or grouped by length; it packs no images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # arms are started as scripts

from benchmarks.trainers.samples import Inputs
from benchmarks.trainers.with_transformers import TransformersWay
from benchmarks.trainers.work import main


class TrlWay(TransformersWay):
    """SFTTrainer on samples that are tokenised already; nothing is recomputed in the backward pass."""

    packages = ("torch", "transformers", "accelerate", "trl")

    def make_trainer(
        self, items: Inputs, scratch: str, precision: str, callbacks: list[TrainerCallback] | None = None
    ) -> Trainer:
        """A trainer of its own for every epoch."""
        own: dict[str, Any] = {"gradient_checkpointing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
        rows = Dataset.from_dict({"place": list(range(len(items)))})  # the only kind of data set that it takes

        def inputs(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
            found = [items[place] for place in batch["place"]]
            return {name: [row[name] for row in found] for name in found[0]}

        return SFTTrainer(
            model=self.model,
            args=SFTConfig(**self.settings(scratch, precision), **own),
            data_collator=self.padding,
            train_dataset=rows.with_transform(inputs),
            processing_class=AutoTokenizer.from_pretrained(self.folder / "theirs"),
            callbacks=callbacks,
        )


if __name__ == "__main__":
    main(TrlWay)
