"""Fixtures of captions, retrieval, boxes, masks and detections."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from tests.eval.benchmarks.fixture import Fixture, copied, picture, repeat, write

CAPTIONS = [
    ["A man rides a tall wave.", "a surfer on a big blue wave"],
    ["Two dogs play in the grass.", "dogs chase a red ball"],
    ["An old clock tower stands near the church.", "a tower with a clock"],
    ["Two dogs play in the grass.", "some dogs run outside"],
]


def karpathy(file: str, images: str, folders: bool) -> Any:
    def make(folder: Path) -> None:
        rows = []
        for i, captions in enumerate(CAPTIONS):
            inner = f"{images}/val2014" if folders else images
            write(folder / inner / f"{i}.jpg", picture(i))
            row = {
                "filename": f"{i}.jpg",
                "imgid": i,
                "split": "test" if i < 4 else "train",
                "sentences": [{"raw": text, "sentid": 10 * i + n, "tokens": []} for n, text in enumerate(captions)],
            }
            rows.append(row | ({"filepath": "val2014", "cocoid": 500 + i} if folders else {}))
        rows.append({**rows[0], "split": "train"})
        rows.append({**rows[1], "split": "val"})
        write(folder / file, {"images": rows, "dataset": "coco"})

    return make


def karpathy_again(file: str) -> Any:
    def change(folder: Path) -> None:
        value = json.loads((folder / file).read_text())
        value["images"].append(value["images"][0])
        write(folder / file, value)

    return change


def coco_captions(file: str, images: str, domains: bool) -> Any:
    def make(folder: Path) -> None:
        listed, annotations = [], []
        for i, captions in enumerate(CAPTIONS):
            write(folder / images / f"{i:012d}.jpg", picture(i))
            image = {"id": i, "file_name": f"{i:012d}.jpg", "width": 12, "height": 8}
            listed.append(image | ({"domain": ["in", "near", "out"][i % 3] + "-domain"} if domains else {}))
            annotations += [{"id": 10 * i + n, "image_id": i, "caption": text} for n, text in enumerate(captions)]
        write(folder / file, {"images": listed, "annotations": annotations})

    return make


def boxes_of(number: int) -> list[list[float]]:
    return [[[2, 2, 6, 4]], [[0, 0, 12, 8], [3, 1, 4, 4]], [[1, 1, 10, 6]]][number]  # type: ignore[return-value]


def instances(name: str) -> dict[str, Any]:
    images = [{"id": i, "file_name": f"{name}{i}.jpg", "width": 12, "height": 8} for i in range(3)]
    annotations = []
    for i in range(3):
        for x, y, width, height in boxes_of(i):
            polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": 3 + i % 2,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": [polygon],
                }
            )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
    }


def refcoco(split_by: str, splits: list[str]) -> Any:
    def make(folder: Path) -> None:
        value = instances("COCO_train2014_")
        for image in value["images"]:
            write(folder / "train2014" / image["file_name"], picture(image["id"]))
        write(folder / "instances.json", value)
        refs = [
            {
                "ref_id": 70 + n,
                "ann_id": annotation["id"],
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "split": [*splits, "train"][n % 4 if len(splits) > 2 else n % 3],
                "sentences": [{"sent_id": 10 * n + k, "sent": f"thing {n} {k}", "raw": "Thing", "tokens": []}
                              for k in range(2)],
                "sent_ids": [10 * n, 10 * n + 1],
            }
            for n, annotation in enumerate(value["annotations"])
        ]  # fmt: skip
        write(folder / f"refs({split_by}).p", pickle.dumps(refs, protocol=2))

    return make


def refcoco_again(split_by: str) -> Any:
    def change(folder: Path) -> None:
        path = folder / f"refs({split_by}).p"
        refs = pickle.loads(path.read_bytes())
        path.write_bytes(pickle.dumps([*refs, refs[0]], protocol=2))

    return change


def reasonseg(folder: Path) -> None:
    for i in range(4):
        write(folder / "val" / f"{i}.jpg", picture(i))
        whole = [[-1, -1], [13, -1], [13, 9], [-1, 9]]
        shapes = [{"label": "target", "points": [[1, 1], [4, 1], [4, 4], [1, 4]]}]
        if i == 1:
            shapes.append({"label": "ignore", "points": [[6, 0], [11, 0], [11, 7], [6, 7]]})
        if i == 3:
            shapes = [{"label": "target", "points": whole}]
        texts = ["What is held?", "Which thing is held by the hand?"] if i else "the thing"
        write(folder / "val" / f"{i}.json", {"text": texts, "is_sentence": bool(i), "shapes": shapes})


def detection(folder: Path) -> None:
    value = instances("")
    for image in value["images"]:
        write(folder / "val2017" / image["file_name"], picture(image["id"]))
    value["images"].append({"id": 9, "file_name": "0.jpg", "width": 12, "height": 8})
    write(folder / "annotations" / "instances_val2017.json", value)


# The whole image against boxes of 24, 96, 16 and 60 of 96 pixels: IoU .25, 1, 1/6, .625. The splits leave the last out.
WHOLE = {"acc50": 1 / 3, "mean_iou": (24 / 96 + 1 + 16 / 96) / 3}
WHOLE_MASK = {"giou": WHOLE["mean_iou"], "ciou": (24 + 96 + 16) / (3 * 96)}
# Splits of RefCOCOg: val, test, train, val.
WHOLE_G = {"acc50": 2 / 3, "mean_iou": (24 / 96 + 1 + 60 / 96) / 3}
WHOLE_G_MASK = {"giou": WHOLE_G["mean_iou"], "ciou": (24 + 96 + 60) / (3 * 96)}
UNC, UMD = ["val", "testA", "testB"], ["val", "test"]
SELF = {"bleu4": 100.0, "rouge_l": 100.0}
_REFCOCO = Fixture(refcoco("unc", UNC), 6, WHOLE, again=refcoco_again("unc"))
_REFCOCO_MASKS = Fixture(refcoco("unc", UNC), 6, WHOLE_MASK, again=refcoco_again("unc"))
_COCO = karpathy("dataset_coco.json", ".", True)
_FLICKR = karpathy("dataset_flickr30k.json", "flickr30k-images", False)

FIXTURES = {
    # The first reference of each image is said: it matches itself perfectly, and the other one hardly.
    "coco_captions": Fixture(_COCO, 4, {}, SELF, karpathy_again("dataset_coco.json")),
    "coco_captions_val2017": Fixture(
        coco_captions("annotations/captions_val2017.json", "val2017", False), 4, {}, SELF,
        repeat("annotations/captions_val2017.json", "images"),
        {"annotations/captions_val2017.json": "annotations/captions_train2017.json"},
    ),
    "nocaps": Fixture(
        coco_captions("nocaps_val_4500_captions.json", "images", True), 4, {}, SELF,
        repeat("nocaps_val_4500_captions.json", "images"),
    ),
    "flickr30k": Fixture(_FLICKR, 4, {}, SELF, karpathy_again("dataset_flickr30k.json")),
    # Everything ties: the best of two captions among six others has rank 1 + 6/2, an image among three others 1 + 3/2.
    "flickr30k_retrieval": Fixture(
        _FLICKR, 32, {"i2t_r1": 0.0, "i2t_r5": 1.0, "t2i_r1": 0.0, "t2i_r5": 1.0},
        again=karpathy_again("dataset_flickr30k.json"),
    ),
    "coco_retrieval": Fixture(_COCO, 32, {"i2t_r1": 0.0, "i2t_r5": 1.0}, again=karpathy_again("dataset_coco.json")),
    "nocaps_test": Fixture(
        copied(
            coco_captions("nocaps_val_4500_captions.json", "images", True),
            "nocaps_val_4500_captions.json", "nocaps_test_image_info.json", ["domain"],
        ), 4, {}, again=repeat("nocaps_test_image_info.json", "images"),
    ),
    # Everything ties again; four images and their eight captions are embedded.
    "flickr30k_vectors": Fixture(
        _FLICKR, 12, {"i2t_r1": 0.0, "i2t_r5": 1.0, "t2i_r1": 0.0, "t2i_r5": 1.0},
        again=karpathy_again("dataset_flickr30k.json"),
    ),
    "coco_vectors": Fixture(_COCO, 12, {"i2t_r1": 0.0, "i2t_r5": 1.0}, again=karpathy_again("dataset_coco.json")),
    "refcoco": _REFCOCO,
    "refcoco_plus": _REFCOCO,
    "refcocog": Fixture(refcoco("umd", UMD), 6, WHOLE_G, again=refcoco_again("umd")),
    "refcoco_unit_square": _REFCOCO,
    "refcoco_thousandths": _REFCOCO,
    "refcoco_masks": _REFCOCO_MASKS,
    "refcoco_plus_masks": _REFCOCO_MASKS,
    "refcocog_masks": Fixture(refcoco("umd", UMD), 6, WHOLE_G_MASK, again=refcoco_again("umd")),
    # 16 pixels of 96 twice, 16 of 96 - 48 once, all of 96 once.
    "reasonseg": Fixture(
        reasonseg, 4, {"giou": (16 / 96 + 16 / 48 + 16 / 96 + 1) / 4, "ciou": (3 * 16 + 96) / (3 * 96 + 48)},
        no_ids="its questions are files",
    ),
    "coco_detection": Fixture(
        detection, 4, {"ap": 0.0, "ap50": 0.0}, again=repeat("annotations/instances_val2017.json", "images")
    ),
}  # fmt: skip
