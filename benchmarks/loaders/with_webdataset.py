"""Arm: webdataset over the same shards."""

from collections.abc import Iterator

import torch
import webdataset
from work import BATCH, MEDIA, WORKERS, Decoder, arguments, collate, measure


def main() -> None:
    """Measure."""
    args = arguments()
    decode, name = Decoder(args.data, args.kind), MEDIA[args.kind]
    shards = sorted(str(path) for path in (args.data / args.kind / "tar").glob("*.tar"))
    dataset = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0, empty_check=False).shuffle(1000)
    if args.kind == "image" and not args.torchvision:
        dataset = dataset.decode("torchrgb8")
    dataset = dataset.map(lambda item: decode(item[name], item["json"])).batched(BATCH, collation_fn=collate)
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=WORKERS, persistent_workers=True)

    def epoch() -> Iterator[torch.Tensor]:
        for batch in loader:
            yield batch["media"]

    measure(epoch, "webdataset")


if __name__ == "__main__":
    main()
