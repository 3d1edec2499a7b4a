"""Arm: mosaicml-streaming over its own shards of the same bytes."""

import shutil
from collections.abc import Iterator
from typing import Any

import torch
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader
from work import BATCH, WORKERS, Decoder, arguments, collate, measure, raw_samples


class Samples(StreamingDataset):
    """Decodes what the shards hold."""

    def __init__(self, directory: str, decode: Decoder) -> None:
        super().__init__(local=directory, shuffle=True, shuffle_seed=0, batch_size=BATCH)
        self.decode = decode

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """A decoded sample."""
        item = super().__getitem__(index)
        return self.decode(item["media"], item["text"])


def main() -> None:
    """Prepare, or measure."""
    args = arguments()
    directory = args.data / args.kind / "mosaicml"
    if args.prepare:
        shutil.rmtree(directory, ignore_errors=True)
        with MDSWriter(out=str(directory), columns={"media": "bytes", "text": "bytes"}) as writer:
            for media, text in raw_samples(args.data, args.kind):
                writer.write({"media": media, "text": text})
        return
    dataset = Samples(str(directory), Decoder(args.data, args.kind, through_pil=True))  # as its columns of "jpeg" do
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=BATCH, num_workers=WORKERS, collate_fn=collate, persistent_workers=True
    )

    def epoch() -> Iterator[torch.Tensor]:
        for batch in loader:
            yield batch["media"]

    measure(epoch, "mosaicml-streaming")


if __name__ == "__main__":
    main()
