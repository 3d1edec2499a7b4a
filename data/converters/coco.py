"""COCO annotation files: detection and instances (https://cocodataset.org/#format-data), captions, panoptic."""

from __future__ import annotations

import argparse
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from data.converters.conversion import (
    ConversionError,
    Converted,
    SkipItemError,
    Tally,
    clipped_box,
    draft,
    read_below,
    read_json,
    tidy,
)
from data.drafts import Draft
from data.media import MediaError, encode_mask
from data.records import Part

SEPARATOR = "; "
"""Between the categories of a prompt that asks for several, as heads of several phrases read it."""
KINDS = ("detection", "instances", "captions", "panoptic")
_IMAGE_FIELDS = {"id", "file_name", "width", "height", "license", "coco_url", "flickr_url", "date_captured"}
_FIELDS = {
    "detection": {"id", "image_id", "category_id", "bbox", "iscrowd", "area", "segmentation"},
    "instances": {"id", "image_id", "category_id", "bbox", "iscrowd", "area", "segmentation"},
    "captions": {"id", "image_id", "caption"},
    "panoptic": {"image_id", "file_name", "segments_info"},
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the format."""
    parser.add_argument("--kind", choices=KINDS, required=True, help="what the annotations are")
    parser.add_argument("--media-root", type=Path, required=True, help="folder of the images")
    parser.add_argument(
        "--panoptic-root", type=Path, help="folder of the panoptic PNG files (default: beside the JSON)"
    )
    parser.add_argument("--box-task", default="ground", help="task of box calls (%(default)s)")
    parser.add_argument("--mask-task", default="seg", help="task of mask calls (%(default)s)")
    parser.add_argument(
        "--list-task",
        metavar="TASK",
        help="one call per image instead, of this task: its prompt lists the categories, its target every box or mask",
    )


def convert(source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
    """One record per image: a turn per category with a call per object, or its captions."""
    value = read_json(source, dict, "COCO annotations")
    missing = sorted({"images", "annotations"} - set(value))
    if missing:
        raise ConversionError(f"COCO annotations '{source}': expected the fields {missing}, got {sorted(value)}")
    names = {item["id"]: str(item["name"]) for item in value.get("categories", [])}
    annotations: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for item in value["annotations"]:
        tally.fields(item, _FIELDS[options.kind], "annotations")
        annotations[item["image_id"]].append(item)
    for number, image in enumerate(value["images"]):
        tally.fields(image, _IMAGE_FIELDS, "images")
        try:
            made = draft(options, number, options.kind)
            made.meta["id"] = image["id"]
            size = made.add_image(read_below(options.media_root, str(image["file_name"])))
            check_declared(image, size)
            own = annotations.pop(image["id"], [])
            if options.kind == "captions":
                _captions(made, own)
            elif options.kind == "panoptic":
                _panoptic(made, own, names, size, options.panoptic_root or source.with_suffix(""), options)
            else:
                _objects(made, own, names, size, options, tally)
            yield made.finish()
        except (SkipItemError, MediaError) as error:
            tally.skip(image.get("file_name", number), str(error))
    for image_id, items in annotations.items():
        for item in items:
            tally.skip(item.get("id", image_id), "annotation of an image that is not listed")


def check_declared(image: Mapping[str, Any], size: tuple[int, int]) -> None:
    """Compare a declared size with the file's.

    Raises:
        SkipItemError: If they differ: boxes and masks would lie elsewhere.
    """
    declared = (image.get("width", size[0]), image.get("height", size[1]))
    if declared != size:
        raise SkipItemError(f"image of another size than declared, such as {size} instead of {declared}")


def segmentation_mask(segmentation: Any, size: tuple[int, int]) -> Tensor:
    """(H, W) bool of polygons, or of run lengths, compressed or not.

    Raises:
        SkipItemError: If it is malformed or of another size.
    """
    width, height = size
    try:
        if isinstance(segmentation, list):
            encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation.get("counts"), list):
            encoded = coco_mask.frPyObjects(segmentation, height, width)
        else:
            encoded = segmentation
        mask = torch.from_numpy(coco_mask.decode(encoded)).bool()
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise SkipItemError(
            f"segmentation that is no polygon and no run-length code ({type(error).__name__})"
        ) from None
    if tuple(mask.shape) != (height, width):
        raise SkipItemError("mask of another size than its image")
    return mask


def _captions(made: Draft, items: Iterable[Mapping[str, Any]]) -> None:
    captions = [tidy(str(item["caption"])) for item in items]
    if not captions:
        raise SkipItemError("image without a caption")
    made.user(made.medium("image"), "Describe the image.")
    made.assistant(captions[0])
    made.meta["captions"] = captions


def _objects(
    made: Draft,
    items: Iterable[Mapping[str, Any]],
    names: Mapping[Any, str],
    size: tuple[int, int],
    options: argparse.Namespace,
    tally: Tally,
) -> None:
    by_category: dict[str, list[list[float] | Tensor]] = defaultdict(list)
    for item in items:
        try:
            by_category[_category(item, names)].append(_place(item, size, options.kind))
        except SkipItemError as error:
            tally.skip(item.get("id"), str(error))
    if not by_category:
        raise SkipItemError("image without objects")
    verb = "Locate" if options.kind == "detection" else "Segment"
    if options.list_task:
        prompt = SEPARATOR.join(by_category)
        made.user(made.medium("image"), f"{verb} {prompt}.")
        made.assistant(made.call(options.list_task, prompt, _list_target(made, by_category)))
        return
    for place, (name, places) in enumerate(by_category.items()):
        made.user(*([made.medium("image")] if not place else []), f"{verb} every {name}.")
        made.assistant(*(_object(made, name, own, options) for own in places))


def _place(item: Mapping[str, Any], size: tuple[int, int], kind: str) -> list[float] | Tensor:
    """The box, or the mask, of an object."""
    if item.get("iscrowd"):
        raise SkipItemError("crowd region")
    if kind == "detection":
        return clipped_box(item["bbox"], size)
    mask = segmentation_mask(item.get("segmentation"), size)
    if not mask.any():
        raise SkipItemError("empty mask")
    return mask


def _object(made: Draft, name: str, place: list[float] | Tensor, options: argparse.Namespace) -> Part:
    if isinstance(place, Tensor):
        return made.call(options.mask_task, name, made.mask_target(place))
    return made.call(options.box_task, name, made.add_target("box", place), place)


def _list_target(made: Draft, by_category: Mapping[str, Sequence[list[float] | Tensor]]) -> str:
    """One target with every object and its category."""
    items, kind = list[dict[str, Any]](), "boxes"
    for name, places in by_category.items():
        for place in places:
            if isinstance(place, Tensor):
                kind = "masks"
                items.append({"mask": encode_mask(place), "label": name})
            else:
                items.append({"box_xyxy": place, "label": name})
    return made.add_target(kind, items)


def _panoptic(
    made: Draft,
    items: list[Mapping[str, Any]],
    names: Mapping[Any, str],
    size: tuple[int, int],
    root: Path,
    options: argparse.Namespace,
) -> None:
    if len(items) != 1:
        raise SkipItemError("not exactly one panoptic annotation")
    ids = panoptic_ids(read_below(root, str(items[0]["file_name"])))
    if ids.shape != (size[1], size[0]):
        raise SkipItemError("panoptic PNG of another size than its image")
    calls = []
    for segment in items[0]["segments_info"]:
        mask = torch.from_numpy(ids == segment["id"])
        if not mask.any():
            raise SkipItemError("segment without pixels")
        calls.append(made.call(options.mask_task, _category(segment, names), made.mask_target(mask)))
    if not calls:
        raise SkipItemError("image without segments")
    made.user(made.medium("image"), "Segment everything.")
    made.assistant(*calls)


def panoptic_ids(data: bytes) -> np.ndarray:
    """(H, W) segment ids of a panoptic PNG: ``R + 256 G + 256² B``.

    Raises:
        SkipItemError: If it does not decode.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            colours = np.asarray(image.convert("RGB"), dtype=np.int64)
    except (OSError, SyntaxError, ValueError) as error:
        raise SkipItemError(f"panoptic PNG that does not decode ({type(error).__name__})") from None
    return colours @ np.array([1, 256, 65536])


def _category(item: Mapping[str, Any], names: Mapping[Any, str]) -> str:
    if item.get("category_id") not in names:
        raise SkipItemError("category that is not listed")
    return names[item["category_id"]]
