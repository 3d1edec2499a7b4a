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
from data.stream import SampleSet
from layers.geometry import GeometricTransform
from layers.head import HeadTarget
from layers.layout import ItemLayout
from models.plan import BatchPlan
from models.projectors import TokenRule
from models.tokenizer import load_tokenizer
from routers.tasks import TaskTable
from routers.vocabulary import Vocabulary

FRAME = 320
MAX_LENGTH = 4096


@dataclass
class PixelProcessor:
    """The pixels as they are, for a model that takes this size; its encoder normalises them."""

    kind: str = field(default="image", init=False)

    def layout(self, size: Sequence[int]) -> ItemLayout:
        """A grid of 14 x 14 features."""
        original = (size[0], size[1])
        return ItemLayout((14, 14), original, GeometricTransform.resize(original, (SIDE, SIDE)))

    def __call__(self, raw: Any) -> tuple[dict[str, Tensor], ItemLayout]:
        """The raster."""
        return {"pixel_values": raw}, self.layout((raw.shape[2], raw.shape[1]))

    def fingerprint(self) -> Mapping[str, Any]:
        """Nothing to set."""
        return {"side": SIDE}


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


class BoxProcessor:
    """A box as fractions of its image."""

    def __call__(self, value: Any, media: Sequence[ItemLayout]) -> HeadTarget:
        """The box on the last image."""
        transform = media[-1].transform
        assert transform is not None
        return {"boxes_xyxy": torch.tensor(transform.normalise_box(value))}


def plan(data: Path) -> BatchPlan:
    """What a model with a 14 x 14 image grid, pooled to 7 x 7 tokens, asks of its workers."""
    tokenizer, tasks = load_tokenizer(data / "tokenizer"), TaskTable.from_dict(TASKS)
    return BatchPlan(
        tokenizer=tokenizer,
        vocabulary=Vocabulary(tokenizer, tasks),
        tasks=tasks,
        processors={"image": PixelProcessor(), "audio": WaveformProcessor()},
        token_rules={"image": TokenRule(2), "audio": TokenRule(8)},
        target_processors={"boxes": BoxProcessor()},
    )


def side_by_side(tensors: Sequence[Tensor]) -> Tensor:
    """One view of tensors that lie side by side in memory, as those of a step do.

    Raises:
        ValueError: If they do not.
    """
    first = tensors[0]
    base, start, size = first.untyped_storage().data_ptr(), first.storage_offset(), first.numel()
    for number, other in enumerate(tensors):
        given = other.untyped_storage().data_ptr(), other.storage_offset(), other.shape, other.stride()
        if given != (base, start + number * size, first.shape, first.stride()):
            raise ValueError(f"expected {len(tensors)} tensors side by side, got tensor {number} somewhere else")
    return first.as_strided((len(tensors), *first.shape), (size, *first.stride()), start)


def main() -> None:
    """Measure."""
    args = arguments()
    shards = [str(path) for path in sorted((args.data / args.kind / "tar").glob("*.tar"))]
    parts = [shards[number :: args.sources] for number in range(args.sources)]
    sources, made = [Source(part) for part in parts], plan(args.data)
    lengths = SampleSet(sources, made, MAX_LENGTH).lengths
    batch = int(BATCH * lengths.mean())  # packs of about as many samples as the rivals' batches
    module = PackedDataModule(sources, max_tokens=batch, num_workers=WORKERS, plan=made)
    module.prepare_data()
    total = len(lengths)
    stream = iter(module.train_dataloader())
    name = {"image": "pixel_values", "audio": "waveform"}[args.kind]

    def epoch() -> Iterator[Tensor]:
        left = total
        while left:
            (pack,) = next(stream).packs
            items = pack.media[args.kind].items
            yield side_by_side([item[name] for item in items])
            left -= len(items)
            del pack, items  # a step that is held keeps its memory from the workers

    measure(epoch, "lightning")


if __name__ == "__main__":
    main()
