"""ReasonSeg (https://arxiv.org/abs/2308.00692): images beside labelme JSON with questions and polygons."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from data.converters.conversion import (
    ConversionError,
    Converted,
    SkipItemError,
    Tally,
    draft,
    read_below,
    read_json,
    tidy,
)
from data.media import MediaError, encode_mask

FIELDS = {"text", "is_sentence", "shapes"}
TARGET, IGNORED = 1, 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the format."""
    parser.add_argument("--mask-task", default="seg", help="task of the calls (%(default)s)")


def convert(source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
    """One record per text of an image; pixels to be ignored stand in ``meta.ignored`` as a run-length code."""
    images = sorted([*source.glob("*.jpg"), *source.glob("*.png")])
    if not images:
        raise ConversionError(f"'{source}': expected a folder with images beside labelme JSON, got no image")
    number = 0
    for image in images:
        try:
            value = read_json(image.with_suffix(".json"), dict, "labelme annotation")
        except ConversionError as error:
            tally.skip(image.name, str(error).replace(str(image.with_suffix(".json")), "FILE"))
            continue
        tally.fields(value, FIELDS)
        texts = value.get("text", [])
        for text in [texts] if isinstance(texts, str) else texts:
            number += 1
            try:
                yield _record(image, value, str(text), options, number)
            except (SkipItemError, MediaError) as error:
                tally.skip(image.name, str(error))


def paint(shapes: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """(H, W) of 0, :data:`TARGET` and :data:`IGNORED`: polygons in descending area, so that small ones lie on top.

    Raises:
        SkipItemError: If a polygon has fewer than three points.
    """
    painted = []
    for shape in shapes:
        points = [(float(x), float(y)) for x, y in shape["points"]]
        if len(points) < 3:
            raise SkipItemError("polygon of fewer than three points")
        layer = Image.new("1", size)
        ImageDraw.Draw(layer).polygon(points, fill=1, outline=1)
        pixels = np.asarray(layer)
        label = IGNORED if "ignore" in str(shape.get("label", "")).lower() else TARGET
        if "flag" not in str(shape.get("label", "")).lower():
            painted.append((int(pixels.sum()), label, pixels))
    canvas = np.zeros((size[1], size[0]), dtype=np.uint8)
    for _, label, pixels in sorted(painted, key=lambda item: -item[0]):
        canvas[pixels] = label
    return canvas


def _record(image: Path, value: Mapping[str, Any], text: str, options: argparse.Namespace, number: int) -> Converted:
    made = draft(options, number, "reasoning_segmentation")
    size = made.add_image(read_below(image.parent, image.name))
    canvas = paint(value.get("shapes", []), size)
    text = tidy(text)
    made.user(made.medium("image"), text if value.get("is_sentence") else f"Segment {text}.")
    target = made.mask_target(torch.from_numpy(canvas == TARGET))
    made.assistant(made.call(options.mask_task, text, target))
    made.meta |= {"id": image.stem, "is_sentence": bool(value.get("is_sentence"))}
    if (canvas == IGNORED).any():
        made.meta["ignored"] = encode_mask(torch.from_numpy(canvas == IGNORED))
    return made.finish()
