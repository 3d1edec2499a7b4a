"""RefCOCO, RefCOCO+ and RefCOCOg: ``refs(SPLITBY).p`` and ``instances.json`` of the refer API."""

from __future__ import annotations

import argparse
import io
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from data.converters.coco import check_declared, segmentation_mask
from data.converters.conversion import (
    ConversionError,
    Converted,
    SkipItemError,
    Tally,
    clipped_box,
    draft,
    read_below,
    read_json,
    record_split,
    tidy,
)
from data.media import MediaError

_REF_FIELDS = {
    "ref_id", "ann_id", "image_id", "category_id", "file_name", "sentences", "sent_ids", "split",
}  # fmt: skip
QUESTIONS = {"ground": "Where is {text}?", "seg": "Segment {text}."}


class _DataUnpickler(pickle.Unpickler):
    """Reads containers, strings and numbers; a pickle that names anything to be imported is refused."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"expected plain data, got a reference to {module}.{name}, which is not loaded")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the format."""
    parser.add_argument("--media-root", type=Path, required=True, help="folder of the COCO images")
    parser.add_argument("--split-by", default="unc", help="of refs(SPLIT_BY).p: unc, google, umd (%(default)s)")
    parser.add_argument("--task", choices=tuple(QUESTIONS), default="ground", help="box or mask (%(default)s)")


def convert(source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
    """One record per sentence, in the data set's own splits (``meta.split`` keeps testA and testB apart)."""
    refs = read_refs(source / f"refs({options.split_by}).p")
    instances = read_json(source / "instances.json", dict, "instances")
    annotations = {item["id"]: item for item in instances["annotations"]}
    images = {item["id"]: item for item in instances["images"]}
    number = 0
    for ref in refs:
        tally.fields(ref, _REF_FIELDS, "refs")
        for sentence in ref["sentences"]:
            number += 1
            try:
                yield _record(ref, sentence, annotations, images, options, number)
            except (SkipItemError, MediaError) as error:
                tally.skip(f"ref {ref.get('ref_id')}, sentence {sentence.get('sent_id')}", str(error))


def read_refs(path: Path) -> list[Mapping[str, Any]]:
    """The list in a refs pickle, which must hold plain data.

    Raises:
        ConversionError: If it is missing, names anything to be imported, or holds something else.
    """
    try:
        value = _DataUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except OSError as error:
        raise ConversionError(f"'{path}': cannot be read: {error}") from None
    except Exception as error:  # a malformed pickle raises nearly anything
        raise ConversionError(f"'{path}': expected a pickle of plain data, got: {error}") from None
    if not isinstance(value, list) or not all(isinstance(item, dict) and "sentences" in item for item in value):
        raise ConversionError(f"'{path}': expected a list of references with sentences, got {type(value).__name__}")
    return value


def _record(
    ref: Mapping[str, Any],
    sentence: Mapping[str, Any],
    annotations: Mapping[Any, Mapping[str, Any]],
    images: Mapping[Any, Mapping[str, Any]],
    options: argparse.Namespace,
    number: int,
) -> Converted:
    annotation, image = annotations.get(ref["ann_id"]), images.get(ref["image_id"])
    if annotation is None or image is None:
        raise SkipItemError("reference to an annotation or image that is not listed")
    made = draft(options, number, options.task, record_split(str(ref["split"])))
    size = made.add_image(read_below(options.media_root, str(image["file_name"])))
    check_declared(image, size)
    text = tidy(str(sentence.get("sent") or sentence.get("raw") or ""))
    if not text:
        raise SkipItemError("sentence without words")
    made.user(made.medium("image"), QUESTIONS[options.task].format(text=text))
    if options.task == "ground":
        box = clipped_box(annotation["bbox"], size)
        made.assistant(made.call("ground", text, made.add_target("box", box), box))
    else:
        made.assistant(made.call("seg", text, made.mask_target(segmentation_mask(annotation["segmentation"], size))))
    made.meta |= {"split": ref["split"], "ref_id": ref["ref_id"], "sent_id": sentence.get("sent_id")}
    return made.finish()
