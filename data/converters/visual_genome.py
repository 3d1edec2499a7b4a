"""Visual Genome region descriptions: ``[{"id", "regions": [{"x", "y", "width", "height", "phrase"}]}]``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.converters.conversion import Converted, SkipItemError, Tally, clipped_box, draft, read_below, read_json, tidy
from data.media import MediaError

FIELDS = {"region_id", "image_id", "x", "y", "width", "height", "phrase"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the format."""
    parser.add_argument(
        "--media-root", type=Path, required=True, help="folder with VG_100K and VG_100K_2, or the images"
    )
    parser.add_argument(
        "--regions", type=int, default=8, help="regions per record; further ones make another (%(default)s)"
    )
    parser.add_argument("--box-task", default="ground", help="task of the calls (%(default)s)")


def convert(source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
    """Records of a few questions each, "Where is PHRASE?", with the box as the answer."""
    number = 0
    for image in read_json(source, list, "region descriptions"):
        regions = image.get("regions", [])
        for start in range(0, len(regions), options.regions):
            number += 1
            try:
                yield _record(image, regions[start : start + options.regions], options, number, tally)
            except (SkipItemError, MediaError) as error:
                tally.skip(image.get("id"), str(error))


def _record(
    image: Mapping[str, Any],
    regions: Sequence[Mapping[str, Any]],
    options: argparse.Namespace,
    number: int,
    tally: Tally,
) -> Converted:
    made = draft(options, number, "ground")
    image_id = regions[0].get("image_id", image.get("id"))
    size = made.add_image(_image(options.media_root, str(image_id)))
    for region in regions:
        tally.fields(region, FIELDS, "regions")
        try:
            box = clipped_box([region[name] for name in ("x", "y", "width", "height")], size)
            phrase = tidy(str(region["phrase"])).rstrip(".")
            if not phrase:
                raise SkipItemError("region without a phrase")
        except SkipItemError as error:
            tally.skip(region.get("region_id"), str(error))
            continue
        made.user(*([made.medium("image")] if not made.messages else []), f"Where is {phrase}?")
        made.assistant(made.call(options.box_task, phrase, made.add_target("box", box), box))
    if not made.messages:
        raise SkipItemError("image without usable regions")
    made.meta["id"] = image_id
    return made.finish()


def _image(root: Path, image_id: str) -> bytes:
    for folder in ("VG_100K", "VG_100K_2", "."):
        if (root / folder / f"{image_id}.jpg").is_file():
            return read_below(root, f"{folder}/{image_id}.jpg")
    raise SkipItemError("image that is not there")
