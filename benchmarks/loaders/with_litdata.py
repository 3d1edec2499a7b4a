"""Arm: litdata over its own chunks of the same bytes."""

import shutil
from collections.abc import Iterator
from typing import Any

import torch
from litdata import StreamingDataLoader, StreamingDataset, optimize
from work import BATCH, WORKERS, Decoder, arguments, collate, measure, raw_samples


class Samples(StreamingDataset):
    """Decodes what the chunks hold."""

    def __init__(self, directory: str, decode: Decoder) -> None:
        super().__init__(directory, shuffle=True, seed=0)
        self.decode = decode

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """A decoded sample."""
        item = super().__getitem__(index)
        return self.decode(item["media"], item["text"])


def _both(sample: tuple[bytes, bytes]) -> dict[str, bytes]:
    return {"media": sample[0], "text": sample[1]}


def main() -> None:
    """Prepare, or measure."""
    args = arguments()
    directory = args.data / args.kind / "litdata"
    if args.prepare:
        shutil.rmtree(directory, ignore_errors=True)
        samples = list(raw_samples(args.data, args.kind))
        optimize(fn=_both, inputs=samples, output_dir=str(directory), chunk_bytes="64MB", num_workers=1)
        return
    loader = StreamingDataLoader(
        Samples(str(directory), Decoder(args.data, args.kind)),  # torchvision, as its own serialiser of JPEG takes
        batch_size=BATCH,
        num_workers=WORKERS,
        collate_fn=collate,
        persistent_workers=True,
    )

    def epoch() -> Iterator[torch.Tensor]:
        for batch in loader:
            yield batch["media"]

    measure(epoch, "litdata")


if __name__ == "__main__":
    main()
