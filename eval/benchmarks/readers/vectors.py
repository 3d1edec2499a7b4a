"""What is embedded once each, for rankings of everything among everything: images and captions, clips, entities.

The call that answers is given (``given`` in the row): what its vector is worth is measured, not whether it is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.records import Part, Target
from eval.benchmarks.benchmark import BenchmarkError
from eval.benchmarks.reader import Item, MediaFile, below
from eval.benchmarks.readers.captions import KarpathyReader
from eval.benchmarks.readers.graphs import TriplesReader, completions, entities_of
from eval.benchmarks.readers.speech import TrialsReader
from heads.entity_ranking import INVERSE


class CaptionVectorsReader(KarpathyReader):
    """Every image of a split and every one of its captions; ``meta.role`` is "image" or "text", ``meta.image`` whose.

    Args:
        root: The benchmark's folder.
        file: The annotations.
        images: Folder of the images.
        split: Of the annotations.
        captions: Of each image, the first so many.
        task: Of the call that is given.
    """

    def __init__(
        self, root: str | Path, file: str, images: str, split: str = "test", captions: int = 5, task: str = "embed"
    ) -> None:
        super().__init__(root, file, images, split)
        self.captions, self.task = captions, task

    def items(self) -> Iterator[Item]:
        """An image, then its captions."""
        for key, path, captions in self.images_of_split():
            image = MediaFile("image", path)
            yield _embedded(f"image/{key}", key, self.task, {"role": "image", "image": key}, media={"image": image})
            for number, caption in enumerate(captions[: self.captions]):
                meta = {"role": "text", "image": key}
                yield _embedded(f"text/{key}/{number}", key, self.task, meta, fields={"caption": caption})


class ClipVectorsReader(TrialsReader):
    """Every clip of a list of trials once; ``meta.trials`` holds ``[other clip, match]`` of those that it is first in.

    Args:
        root: The benchmark's folder.
        file: The trials.
        clips: Folder of the clips.
        task: Of the call that is given.
    """

    def __init__(self, root: str | Path, file: str, clips: str = "wav", task: str = "embed") -> None:
        super().__init__(root, file, clips)
        self.task = task

    def items(self) -> Iterator[Item]:
        """In the order in which the trials name them."""
        trials: dict[str, dict[str, bool]] = {}
        for first, second, match in self.trials():
            own = trials.setdefault(first, {})
            if second in own:
                raise BenchmarkError(f"'{self.files[0]}': expected every trial once, got '{first} {second}' again")
            own[second] = match
            trials.setdefault(second, {})
        for clip, own in trials.items():
            speaker = clip.split("/")[0]
            audio = MediaFile("audio", below(self.root, f"{self.clips}/{clip}"))
            meta = {"role": "clip", "clip": clip, "speaker": speaker, "trials": [list(trial) for trial in own.items()]}
            yield _embedded(clip, speaker, self.task, meta, media={"audio": audio})


class EntityVectorsReader(TriplesReader):
    """Every entity of a knowledge graph, then every test triple from either side as the entity given and its relation.

    ``meta.role`` is "entity" or "query". A query's ``meta.right`` is the entity asked for, and ``meta.known`` those
    that are right as well in any of the three files.

    Args:
        root: The benchmark's folder.
        texts: TSV of entity and text.
        task: Of the call that is given; a query's prompt is the relation, or ``inverse of`` it.
    """

    def __init__(self, root: str | Path, texts: str | None = None, task: str = "entity") -> None:
        super().__init__(root, texts)
        self.task = task

    def items(self) -> Iterator[Item]:
        """Entities first."""
        parts, names = self.triples(), self.names()
        for entity in entities_of(parts):
            fields = {"text": names.get(entity, entity)}
            yield _embedded(f"entity/{entity}", entity, self.task, {"role": "entity", "entity": entity}, fields=fields)
        for asked in completions(parts, self.sides):
            meta = {"role": "query", "side": asked.side, "right": asked.right, "known": sorted(asked.known)}
            prompt = asked.relation if asked.side == "tail" else f"{INVERSE}{asked.relation}"
            fields = {"text": names.get(asked.given, asked.given)}
            key, cluster = f"query/{asked.key}", str(asked.number)
            yield _embedded(key, asked.right, self.task, meta, fields=fields, prompt=prompt, cluster=cluster)


def _embedded(
    key: str,
    item: str,
    task: str,
    meta: Mapping[str, Any],
    *,
    fields: Mapping[str, str] | None = None,
    media: Mapping[str, MediaFile] | None = None,
    prompt: str = "",
    cluster: str | None = None,
) -> Item:
    """A sample whose gold reply is a vector: equal for equal ``item``, another for every other."""
    target = Target("pair", {"group": item, "role": "positive", "item": item})
    call = Part("call", task=task, prompt=prompt, target="t0")
    targets, cluster = {"t0": target}, cluster or item
    return Item(key, fields or {}, media or {}, calls=(call,), targets=targets, cluster=cluster, meta=meta)
