"""What frozen encoders gave, on disk: found by the exact inputs that they were given, in safetensors shards.

A folder belongs to one encoder with one set of weights (:class:`FeatureShards`). A shard holds the features of many
items under the hash of each item's processed inputs, which stands for the sample and the transform together: another
crop, another version of a decoder or another augmentation is another key, and can never be taken for this one. Shards
are written under another name, reach the disk and are then renamed, by any number of processes at once, so that an
interrupted run loses what was not written yet and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from layers.batch import Batch, MediaBatch
from layers.layout import ItemLayout

ABOUT = "about.json"
_SHARD_BYTES = 256 * 2**20
_SHARD_SECONDS = 60.0
_LOOK_SECONDS = 10.0


def content_key(inputs: Mapping[str, Tensor], layout: ItemLayout) -> str:
    """A hash of an item's processed inputs and of the shape of its features."""
    digest = hashlib.sha256(repr((layout.grid, layout.tiles, layout.regions, layout.seconds)).encode())
    for name in sorted(inputs):
        tensor = inputs[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:40]


class FeatureShards:
    """The features of one encoder's items.

    Args:
        folder: Of this encoder; created if missing.
        about: What it is, for people and as a check.
        max_bytes: No shard is begun that would make the folder larger.

    Attributes:
        written: Items that this process added to the disk.
        left_out: Items that it did not keep, for lack of room.

    Raises:
        ValueError: If the folder belongs to another encoder.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.written = self.left_out = 0
        self._places: dict[str, Any] = {}
        self._opened: set[str] = set()
        self._looked = float("-inf")
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes, self._pending_since = 0, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(about, indent=1, sort_keys=True)
        path = folder / ABOUT
        if path.exists() and path.read_text() != text:
            raise ValueError(f"'{folder}' holds the features of another encoder: {path.read_text()}")
        if not path.exists():
            _write(path, text.encode())
        self._look()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_places": {}, "_opened": set(), "_pending": {}, "_looked": float("-inf")}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places or key in self._pending

    @property
    def num_bytes(self) -> int:
        """Size of the folder."""
        return sum(path.stat().st_size for path in self._shards())

    def get(self, key: str) -> Tensor | None:
        """(N, d) features, mapped from the file, or None."""
        if key not in self._places and time.monotonic() - self._looked > _LOOK_SECONDS:
            self._look()
        if key in self._places:
            features: Tensor = self._places[key].get_tensor(key)
            return features
        return self._pending.get(key)

    def add(self, key: str, features: Tensor) -> None:
        """Keep an item's features; they reach the disk with the shard that they fill, or by :meth:`flush`."""
        if key in self or self.left_out:
            self.left_out += key not in self
            return
        tensor = features.detach().cpu().contiguous()
        self._pending[key] = tensor
        self._pending_bytes += tensor.numel() * tensor.element_size()
        if self._pending_bytes >= _SHARD_BYTES or time.monotonic() - self._pending_since > _SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was added, unless the folder is full; a full disk ends the writing and not the run."""
        self._pending_since = time.monotonic()
        if not self._pending:
            return
        pending, size = self._pending, self._pending_bytes
        self._pending, self._pending_bytes = {}, 0
        name = f"{time.time_ns():x}-{os.getpid():x}.safetensors"
        partial = self.folder / f".{name}"
        reason = f"more than {self.max_bytes / 2**30:.1f} GiB" if self.num_bytes + size > self.max_bytes else None
        if reason is None:
            try:
                save_file(pending, partial)
                _sync(partial)
                partial.rename(self.folder / name)
                _sync(self.folder)
                self.written += len(pending)
            except (OSError, SafetensorError) as error:
                partial.unlink(missing_ok=True)
                reason = str(error)
        if reason is not None:
            self.left_out += len(pending)
            print(f"features: '{self.folder}' takes no more items ({reason}); training goes on", flush=True)
        self._look()

    def _shards(self) -> list[Path]:
        """Those that are whole; a name with a dot in front is still being written, or never was to the end."""
        return sorted(path for path in self.folder.glob("*.safetensors") if not path.name.startswith("."))

    def _look(self) -> None:
        """Find shards that were written since the last look."""
        self._looked = time.monotonic()
        for path in self._shards():
            if path.name not in self._opened:
                self._opened.add(path.name)
                file = safe_open(path, framework="pt")
                self._places.update(dict.fromkeys(file.keys(), file))


@dataclass
class FeatureLookup:
    """Puts features into packs, in data workers; an encoder then has nothing to do for these items.

    Args:
        shards: Modality -> the features of its encoder.
    """

    shards: Mapping[str, FeatureShards]

    def attach(self, packs: Sequence[Batch]) -> None:
        """Look up every item; what is found and read by no head leaves its inputs behind."""
        for pack in packs:
            needed = {reference for calls in pack.calls.values() for call in calls for reference in call.media}
            for kind in set(pack.media) & set(self.shards):
                self._attach(pack.media[kind], self.shards[kind], {place for own, place in needed if own == kind})

    def _attach(self, media: MediaBatch, shards: FeatureShards, needed: set[int]) -> None:
        layouts = media.layout.items
        media.contents = [content_key(item, layout) for item, layout in zip(media.items, layouts, strict=True)]
        media.features = [shards.get(key) for key in media.contents]
        media.items = [
            item if features is None or place in needed else {}
            for place, (item, features) in enumerate(zip(media.items, media.features, strict=True))
        ]


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.rename(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
