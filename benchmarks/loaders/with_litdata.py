"""Arm: litdata over its own chunks of the same bytes."""

from litdata import StreamingDataLoader, StreamingDataset
from work import BATCH, WORKERS, Decoder, arguments, collate, measure


class Samples(StreamingDataset):
    """Decodes what the chunks hold."""

    def __init__(self, directory: str, decode: Decoder) -> None:
        super().__init__(directory, shuffle=True, seed=0)
        self.decode = decode

    def __getitem__(self, index: object) -> dict[str, object]:
        """A decoded sample."""
        item = super().__getitem__(index)
        return self.decode(item["media"], item["text"])


def main() -> None:
    """Measure."""
    args = arguments()
    dataset = Samples(str(args.data / "litdata"), Decoder(args.data, args.kind))
    loader = StreamingDataLoader(
        dataset, batch_size=BATCH, num_workers=WORKERS, collate_fn=collate, persistent_workers=True, shuffle=True
    )
    measure(lambda: iter(loader), "litdata")


if __name__ == "__main__":
    main()
