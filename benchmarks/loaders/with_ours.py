"""Arm: Switchyard's indexed reader over the same shards: whole records, rendered, tokenised, packed, with targets."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # arms are started as scripts

from benchmarks.loaders.corpus import SAMPLE_RATE, SIDE, TASKS
from benchmarks.loaders.work import BATCH, WORKERS, arguments, measure
from data.datamodule import PackedDataModule
from data.mixtures import Source
from encoders.vision import ImageProcessor
from heads.boxes import BoxTargetProcessor
from layers.layout import ItemLayout
from models.plan import BatchPlan
from models.projectors import TokenRule
from models.tokenizer import load_tokenizer
from routers.tasks import TaskTable
from routers.vocabulary import Vocabulary

FRAME = 320


@dataclass
class WaveformProcessor:
    """The samples as they are: spectrograms are the work of a model, and no rival's arm computes them."""

    kind: str = field(default="audio", init=False)
    sample_rate: int = field(default=SAMPLE_RATE, init=False)

    def layout(self, size: Sequence[int]) -> ItemLayout:
        """A feature per 20 ms."""
        return ItemLayout((-(-size[0] // FRAME),), (size[0],), seconds=size[0] / SAMPLE_RATE)

    def __call__(self, raw: Any) -> tuple[dict[str, Tensor], ItemLayout]:
        """The waveform."""
        return {"waveform": raw.waveform}, self.layout([len(raw.waveform)])

    def fingerprint(self) -> Mapping[str, Any]:
        """Nothing to set."""
        return {"frame": FRAME}


def plan(data: Path) -> BatchPlan:
    """What a model with a 14 x 14 image grid, pooled to 7 x 7 tokens, asks of its workers."""
    tokenizer, tasks = load_tokenizer(data / "tokenizer"), TaskTable.from_dict(TASKS)
    return BatchPlan(
        tokenizer=tokenizer,
        vocabulary=Vocabulary(tokenizer, tasks),
        tasks=tasks,
        processors={"image": ImageProcessor((SIDE, SIDE), (14, 14)), "audio": WaveformProcessor()},
        token_rules={"image": TokenRule(2), "audio": TokenRule(8)},
        target_processors={"boxes": BoxTargetProcessor()},
    )


def main() -> None:
    """Measure."""
    args = arguments()
    shards = [str(path) for path in sorted((args.data / args.kind / "tar").glob("*.tar"))]
    parts = [shards[number :: args.sources] for number in range(args.sources)]
    module = PackedDataModule(
        [Source(part) for part in parts],
        max_tokens=BATCH * (120 if args.kind == "image" else 150),
        num_workers=WORKERS,
        plan=plan(args.data),
    )
    module.prepare_data()
    total = module.train_samples().num_samples
    stream = iter(module.train_dataloader())
    name = {"image": "pixel_values", "audio": "waveform"}[args.kind]

    def epoch() -> Iterator[Tensor]:
        left = total
        while left:
            (pack,) = next(stream).packs
            items = pack.media[args.kind].items
            yield torch.stack([item[name] for item in items])
            left -= len(items)

    measure(epoch, "lightning")


if __name__ == "__main__":
    main()
