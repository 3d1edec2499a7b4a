"""Arm: megatron-energon over the same shards, with the index that it writes itself."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    SkipSample,
    WorkerConfig,
    basic_sample_keys,
    edataclass,
    get_loader,
    get_train_dataset,
    stateless,
)
from work import BATCH, MEDIA, WORKERS, Decoder, arguments, collate, measure, raw_samples


@edataclass
class Decoded(Sample):
    """A sample after the cooker."""

    fields: dict[str, Any]


class Encoder(DefaultTaskEncoder):
    """Cooks crude samples with the common decoder."""

    decoder = None  # its own, through PIL too, would give floats

    def __init__(self, decode: Decoder, name: str) -> None:
        super().__init__()
        self.decode, self.name = decode, name
        self.cookers = [Cooker(self.cook)]

    @stateless
    def cook(self, sample: dict[str, Any]) -> Decoded:
        """Decode a crude sample."""
        if self.name not in sample:
            raise SkipSample
        return Decoded(**basic_sample_keys(sample), fields=self.decode(sample[self.name], sample["json"]))

    @stateless
    def encode_sample(self, sample: Decoded) -> Decoded:
        """Nothing more."""
        return sample

    @stateless
    def batch(self, samples: list[Decoded]) -> dict[str, Any]:
        """A stacked batch with its text and boxes."""
        return collate([sample.fields for sample in samples])

    @stateless
    def encode_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Nothing more."""
        return batch


def prepare(source: Path, directory: Path) -> None:
    """Link the shards into a folder of their own, since energon writes beside them, and index them."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for shard in sorted(source.glob("*.tar")):
        os.link(shard, directory / shard.name)
    tool = Path(sys.executable).parent / "energon"
    options = [
        "--non-interactive",
        "--split-parts",
        "train:.*",
        "--sample-type",
        "CrudeWebdataset",
        "--num-workers",
        "1",
    ]
    subprocess.run([str(tool), "prepare", str(directory), *options], check=True)


def main() -> None:
    """Prepare, or measure."""
    args = arguments()
    directory = args.data / args.kind / "energon"
    if args.prepare:
        prepare(args.data / args.kind / "tar", directory)
        return
    encoder = Encoder(Decoder(args.data, args.kind, through_pil=True), MEDIA[args.kind])
    dataset = get_train_dataset(
        directory,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=WORKERS),
        batch_size=BATCH,
        shuffle_buffer_size=1000,
        max_samples_per_sequence=100,
        task_encoder=encoder,
    )
    stream, samples = iter(get_loader(dataset)), sum(1 for _ in raw_samples(args.data, args.kind))

    def epoch() -> Iterator[torch.Tensor]:
        """As many samples as there are; its own epochs would start their workers anew."""
        for _ in range(-(-samples // BATCH)):
            yield next(stream)["media"]

    measure(epoch, "megatron-energon")


if __name__ == "__main__":
    main()
