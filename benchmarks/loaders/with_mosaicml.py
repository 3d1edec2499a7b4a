"""Arm: mosaicml-streaming over its own shards of the same bytes."""

from streaming import StreamingDataset
from torch.utils.data import DataLoader
from work import BATCH, WORKERS, Decoder, arguments, collate, measure


class Samples(StreamingDataset):
    """Decodes what the shards hold."""

    def __init__(self, directory: str, decode: Decoder) -> None:
        super().__init__(local=directory, shuffle=True, shuffle_seed=0, batch_size=BATCH)
        self.decode = decode

    def __getitem__(self, index: object) -> dict[str, object]:
        """A decoded sample."""
        item = super().__getitem__(index)
        return self.decode(item["media"], item["text"])


def main() -> None:
    """Measure."""
    args = arguments()
    dataset = Samples(str(args.data / "mosaicml"), Decoder(args.data, args.kind))
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, collate_fn=collate, persistent_workers=True)
    measure(lambda: iter(loader), "mosaicml-streaming")


if __name__ == "__main__":
    main()
