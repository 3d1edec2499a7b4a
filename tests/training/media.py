"""Records of each modality made here, for the tests of stage 0."""

from pathlib import Path

import torch

from data.media import encode_flac, encode_graph, encode_mask, encode_png
from data.records import Media, Message, Part, Record
from data.shards import ShardWriter
from encoders.vision import TimmEncoder
from layers.media import Graph

COLOURS = ("red", "green", "blue", "yellow", "purple", "white")


def make_record(kind: str, key: str, size: tuple[int, ...], extension: str, meta: dict) -> Record:
    media = Media(kind, f"{kind}.{extension}", size, 16_000 if kind == "audio" else None)
    message = Message("user", (Part(kind, media=kind),))
    return Record(key, "test", "made here", "CC0-1.0", "train", (message,), {kind: media}, {}, meta)


def scene(key: str, seed: int) -> tuple[Record, bytes]:
    """Two rectangles of different colours."""
    generator = torch.Generator().manual_seed(seed)
    image, objects = torch.zeros(3, 32, 32, dtype=torch.uint8), []
    for place in range(2):
        colour = int(torch.randint(3, (), generator=generator))
        left, top = 2 + 16 * place, int(torch.randint(2, 16, (), generator=generator))
        width, height = 5 + 3 * (colour % 2), 12
        mask = torch.zeros(32, 32, dtype=torch.bool)
        mask[top : top + height, left : left + width] = True
        image[colour][mask] = 250
        box = [float(left), float(top), float(left + width), float(top + height)]
        objects.append({"digit": colour, "colour": COLOURS[colour], "box_xyxy": box, "mask": encode_mask(mask)})
    return make_record("image", key, (32, 32), "png", {"objects": objects}), encode_png(image)


def tiny_vision() -> TimmEncoder:
    arguments = {"channels": [16, 16, 16, 16], "stem_width": 8}
    return TimmEncoder("resnet10t", 32, 4, 16, (1, 2), arguments, norm_groups=2)


def write_shards(directory: Path, kind: str, count: int) -> str:
    torch.manual_seed(0)
    with ShardWriter(directory, kind) as writer:
        for index in range(count):
            key = f"{kind}_{index}"
            if kind == "image":
                record, data = scene(key, index)
            elif kind == "audio":
                samples = 3000 + 640 * (index % 4)
                record = make_record("audio", key, (samples,), "flac", {"transcript": "ab"})
                data = encode_flac(torch.randn(samples) * 0.1)
            else:
                graph = Graph((f"node {index}", "other", "sys"), torch.tensor([[0, 2], [1, 0]]))
                record, data = make_record("graph", key, (3,), "json", {}), encode_graph(graph)
            writer.write(record, {record.files[0]: data})
    return str(directory)
