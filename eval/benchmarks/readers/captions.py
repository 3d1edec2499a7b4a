"""Captions of images: COCO's and NoCaps' annotation files, Karpathy's splits, and retrieval among both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.converters.conversion import tidy
from eval.benchmarks.benchmark import BenchmarkError
from eval.benchmarks.reader import Item, MediaFile, Reader, below, read_json


class CocoCaptionsReader(Reader):
    """COCO captions (https://cocodataset.org/#format-data), also NoCaps', whose images have a ``domain``.

    Args:
        root: The benchmark's folder.
        file: The annotations.
        images: Folder of the images.
        references: Whether the file has captions; without, its images are asked and a server holds them.
    """

    def __init__(self, root: str | Path, file: str, images: str, references: bool = True) -> None:
        super().__init__(root)
        self.file, self.images, self.references = file, images, references

    @property
    def files(self) -> tuple[Path, ...]:
        """The annotations."""
        return (below(self.root, self.file),)

    def items(self) -> Iterator[Item]:
        """One per image."""
        value = read_json(self.files[0])
        captions: dict[Any, list[str]] = {}
        try:
            known = {image["id"] for image in value["images"]}
            for annotation in value["annotations"] if self.references else ():
                if annotation["image_id"] not in known:
                    raise BenchmarkError(
                        f"'{self.files[0]}': annotation {annotation.get('id')}: expected an image of the list, got "
                        f"{annotation['image_id']}"
                    )
                captions.setdefault(annotation["image_id"], []).append(tidy(str(annotation["caption"])))
            for image in value["images"]:
                own = captions.get(image["id"], [])
                if not own and self.references:
                    raise BenchmarkError(f"'{self.files[0]}': image {image['id']}: expected captions, got none")
                yield _captioned(
                    str(image["id"]),
                    below(self.root, f"{self.images}/{image['file_name']}"),
                    own,
                    {"domain": image["domain"]} if "domain" in image else {},
                )
        except (KeyError, TypeError) as error:
            raise BenchmarkError(f"'{self.files[0]}': expected COCO captions, got none of {error}") from None


class KarpathyReader(Reader):
    """Karpathy's splits (https://arxiv.org/abs/1412.2306): ``dataset_coco.json``, ``dataset_flickr30k.json``.

    Args:
        root: The benchmark's folder.
        file: The annotations.
        images: Folder of the images; COCO's lie in the folders that the file names, Flickr30k's beside one another.
        split: "test" holds 5,000 images of COCO and 1,000 of Flickr30k.
    """

    def __init__(self, root: str | Path, file: str, images: str, split: str = "test") -> None:
        super().__init__(root)
        self.file, self.images, self.split = file, images, split

    @property
    def files(self) -> tuple[Path, ...]:
        """The annotations."""
        return (below(self.root, self.file),)

    def items(self) -> Iterator[Item]:
        """One per image."""
        for key, path, captions in self.images_of_split():
            yield _captioned(key, path, captions, {})

    def images_of_split(self) -> Iterator[tuple[str, Path, list[str]]]:
        """(key, file, captions) of the split's images."""
        value = read_json(self.files[0])
        try:
            for image in value["images"]:
                if image["split"] == self.split:
                    captions = [tidy(str(sentence["raw"])) for sentence in image["sentences"]]
                    folder = f"{self.images}/{image['filepath']}" if image.get("filepath") else self.images
                    yield (
                        str(image.get("cocoid", image["imgid"])),
                        below(self.root, f"{folder}/{image['filename']}"),
                        captions,
                    )
        except (KeyError, TypeError) as error:
            raise BenchmarkError(f"'{self.files[0]}': expected Karpathy's annotations, got none of {error}") from None


class RetrievalReader(KarpathyReader):
    """Every image with every caption of its block: which belong together is told from scores.

    A generative model looks at pairs, so a gallery of N images costs N times 5 N questions; blocks bound that. The
    protocol names their size, because recall within smaller blocks is higher.

    Args:
        root: The benchmark's folder.
        file: The annotations.
        images: Folder of the images.
        split: Of the annotations.
        block: Images per block; the last one may be smaller.
        captions: Of each image, the first so many.
    """

    def __init__(
        self, root: str | Path, file: str, images: str, split: str = "test", block: int = 25, captions: int = 5
    ) -> None:
        super().__init__(root, file, images, split)
        self.block, self.captions = block, captions

    def items(self) -> Iterator[Item]:
        """One per pair."""
        everything = list(self.images_of_split())
        for start in range(0, len(everything), self.block):
            own = everything[start : start + self.block]
            for key, path, _ in own:
                for other, _, captions in own:
                    for number, caption in enumerate(captions[: self.captions]):
                        yield Item(
                            key=f"{key}/{other}/{number}",
                            fields={"caption": caption},
                            media={"image": MediaFile("image", path)},
                            answer="yes" if key == other else "no",
                            cluster=str(start),
                            meta={"block": start, "image": key, "text": f"{other}/{number}", "match": key == other},
                        )


def _captioned(key: str, path: Path, captions: list[str], meta: Mapping[str, Any]) -> Item:
    gold = captions[0] if captions else ""
    return Item(key, {}, {"image": MediaFile("image", path)}, gold, meta={"captions": captions, **meta})
