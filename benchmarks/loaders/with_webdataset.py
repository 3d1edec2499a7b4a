"""Arm: webdataset over the same shards."""

import webdataset
from work import BATCH, WORKERS, Decoder, arguments, collate, measure


def main() -> None:
    """Measure."""
    args = arguments()
    decode = Decoder(args.data, args.kind)
    shards = sorted(str(path) for path in (args.data / "tar").glob("*.tar"))
    media = "photo.jpg" if args.kind == "image" else "clip.flac"

    def sample(item: dict[str, bytes]) -> dict[str, object]:
        return decode(item[media], item["text.json"])

    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0, empty_check=False)
        .shuffle(1000)
        .map(sample)
        .batched(BATCH, collation_fn=collate)
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=WORKERS, persistent_workers=True)
    measure(lambda: iter(loader), "webdataset")


if __name__ == "__main__":
    main()
