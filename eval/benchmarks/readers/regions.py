"""Regions of images: RefCOCO's expressions, ReasonSeg's questions, COCO's objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from data.converters.coco import segmentation_mask
from data.converters.conversion import ConversionError, SkipItemError, clipped_box, tidy
from data.converters.reasonseg import IGNORED, TARGET, paint
from data.converters.refcoco import read_refs
from data.drafts import image_size
from data.media import MediaError, encode_mask
from data.records import Part, Target
from eval.benchmarks.benchmark import BenchmarkError
from eval.benchmarks.reader import Item, MediaFile, Reader, below, read_json


class RefCocoReader(Reader):
    """RefCOCO, RefCOCO+ and RefCOCOg (https://arxiv.org/abs/1608.00272): one question per sentence.

    Args:
        root: The folder of ``refs(SPLIT_BY).p``, which must be a pickle of plain data, and ``instances.json``.
        images: Folder of the COCO images, below ``root``.
        splits: Which are asked; ``meta.split`` keeps them apart.
        split_by: "unc", "google" or "umd".
        kind: "box" or "mask".
        task: Of the gold's call.
    """

    def __init__(
        self,
        root: str | Path,
        images: str,
        splits: list[str],
        split_by: str = "unc",
        kind: Literal["box", "mask"] = "box",
        task: str = "ground",
    ) -> None:
        super().__init__(root)
        self.images, self.splits, self.split_by, self.kind, self.task = images, tuple(splits), split_by, kind, task

    @property
    def files(self) -> tuple[Path, ...]:
        """References and instances."""
        return below(self.root, f"refs({self.split_by}).p"), below(self.root, "instances.json")

    def items(self) -> Iterator[Item]:
        """One per sentence."""
        try:
            refs = read_refs(self.files[0])
        except ConversionError as error:
            raise BenchmarkError(str(error)) from None
        instances = read_json(self.files[1])
        annotations = {item["id"]: item for item in instances["annotations"]}
        images = {item["id"]: item for item in instances["images"]}
        for ref in refs:
            if ref.get("split") not in self.splits:
                continue
            try:
                image, annotation = images[ref["image_id"]], annotations[ref["ann_id"]]
                yield from self._questions(ref, image, annotation)
            except (KeyError, SkipItemError) as error:
                raise BenchmarkError(f"'{self.files[0]}' ref {ref.get('ref_id')}: {error}") from None

    def _questions(
        self, ref: Mapping[str, Any], image: Mapping[str, Any], annotation: Mapping[str, Any]
    ) -> Iterator[Item]:
        size = int(image["width"]), int(image["height"])
        box = clipped_box(annotation["bbox"], size)
        if self.kind == "mask":
            target = Target("mask", encode_mask(segmentation_mask(annotation["segmentation"], size)))
        else:
            target = Target("box", box)
        groundings = ({"type": "region", "box_xyxy": box},) if self.kind == "box" else ()
        for sentence in ref["sentences"]:
            text = tidy(str(sentence.get("sent") or sentence.get("raw") or ""))
            yield Item(
                key=f"{ref['ref_id']}/{sentence['sent_id']}",
                fields={"expression": text},
                media={"image": MediaFile("image", below(self.root, f"{self.images}/{image['file_name']}"))},
                calls=(Part("call", task=self.task, prompt=text, groundings=groundings, target="t0"),),
                targets={"t0": target},
                cluster=str(ref["image_id"]),
                meta={"split": ref["split"], "size": list(size), "box_xyxy": box},
            )


class ReasonSegReader(Reader):
    """ReasonSeg (https://arxiv.org/abs/2308.00692): images beside labelme JSON.

    Args:
        root: The benchmark's folder.
        folder: Of a split, below it.
        sentences: "first" of an image's texts, as LISA scores it, or "all".
        phrase: Of a short text, around ``{text}``; a sentence is asked as it is.
        task: Of the gold's call.
    """

    def __init__(
        self,
        root: str | Path,
        folder: str = "val",
        sentences: Literal["first", "all"] = "first",
        phrase: str = "Segment {text}.",
        task: str = "seg",
    ) -> None:
        super().__init__(root)
        self.folder, self.sentences, self.phrase, self.task = folder, sentences, phrase, task

    @property
    def files(self) -> tuple[Path, ...]:
        """The JSON files, or the folder where there is none."""
        folder = below(self.root, self.folder)
        return tuple(sorted(folder.glob("*.json"))) or (folder / "*.json",)

    def items(self) -> Iterator[Item]:
        """One per text that is asked."""
        for path in self.files:
            value = read_json(path)
            image = next((path.with_suffix(end) for end in (".jpg", ".png") if path.with_suffix(end).is_file()), None)
            if image is None:  # the masks are painted in its size
                raise BenchmarkError(f"'{path}': expected an image beside it, got none")
            try:
                size, _ = image_size(image.read_bytes(), image.name)
                canvas = torch.from_numpy(paint(value.get("shapes", []), size))
            except (SkipItemError, MediaError, KeyError, TypeError, ValueError) as error:
                raise BenchmarkError(f"'{path}': {error}") from None
            texts = [value["text"]] if isinstance(value.get("text"), str) else list(value.get("text", ()))
            if not texts:
                raise BenchmarkError(f"'{path}': expected at least one text, got none")
            for number, text in enumerate(texts[:1] if self.sentences == "first" else texts):
                text = tidy(str(text))
                meta: dict[str, Any] = {"size": list(size), "is_sentence": bool(value.get("is_sentence"))}
                if (canvas == IGNORED).any():
                    meta["ignored"] = encode_mask(canvas == IGNORED)
                yield Item(
                    key=f"{path.stem}/{number}",
                    fields={"question": text if value.get("is_sentence") else self.phrase.replace("{text}", text)},
                    media={"image": MediaFile("image", image)},
                    calls=(Part("call", task=self.task, prompt=text, target="t0"),),
                    targets={"t0": Target("mask", encode_mask(canvas == TARGET))},
                    cluster=path.stem,
                    meta=meta,
                )


class CocoDetectionReader(Reader):
    """COCO detection: every object of an image; the gold makes one call per object, its category being the prompt.

    Args:
        root: The benchmark's folder.
        file: The annotations.
        images: Folder of the images.
        task: Of the gold's calls.
    """

    def __init__(self, root: str | Path, file: str, images: str, task: str = "ground") -> None:
        super().__init__(root)
        self.file, self.images, self.task = file, images, task

    @property
    def files(self) -> tuple[Path, ...]:
        """The annotations."""
        return (below(self.root, self.file),)

    def items(self) -> Iterator[Item]:
        """One per image, the categories in its prompt; ``meta`` holds what COCO's scorer needs."""
        value = read_json(self.files[0])
        try:
            names = {item["id"]: str(item["name"]) for item in value["categories"]}
            own: dict[Any, list[Mapping[str, Any]]] = {}
            for annotation in value["annotations"]:
                own.setdefault(annotation["image_id"], []).append(annotation)
            for image in value["images"]:
                yield self._image(image, own.pop(image["id"], []), names)
        except (KeyError, TypeError) as error:
            raise BenchmarkError(f"'{self.files[0]}': expected COCO annotations, got none of {error}") from None
        if own:
            raise BenchmarkError(
                f"'{self.files[0]}': expected annotations of listed images, got image {next(iter(own))}"
            )

    def _image(self, image: Mapping[str, Any], annotations: list[Mapping[str, Any]], names: Mapping[Any, str]) -> Item:
        targets: dict[str, Target] = {}
        calls: list[Part] = []
        kept: list[dict[str, Any]] = []
        for annotation in annotations:
            x, y, width, height = (float(value) for value in annotation["bbox"])
            crowd = int(annotation.get("iscrowd", 0))
            kept.append(
                {
                    "category_id": annotation["category_id"],
                    "bbox": [x, y, width, height],
                    "area": float(annotation.get("area", width * height)),
                    "iscrowd": crowd,
                }
            )
            if not crowd and width > 0 and height > 0:
                name, box = f"t{len(targets)}", [x, y, x + width, y + height]
                targets[name] = Target("box", box)
                region = {"type": "region", "box_xyxy": box}
                calls.append(
                    Part(
                        "call",
                        task=self.task,
                        prompt=names[annotation["category_id"]],
                        groundings=(region,),
                        target=name,
                    )
                )
        return Item(
            key=str(image["id"]),
            fields={"categories": ", ".join(names.values())},
            media={"image": MediaFile("image", below(self.root, f"{self.images}/{image['file_name']}"))},
            answer="" if calls else "Nothing.",
            calls=tuple(calls),
            targets=targets,
            meta={
                "image_id": image["id"],
                "size": [image["width"], image["height"]],
                "objects": kept,
                "categories": {str(key): name for key, name in names.items()},
            },
        )
