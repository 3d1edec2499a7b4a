"""Frozen encoders run once per item: what they gave is kept on disk and used again, in this run and in others."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from data.features import FeatureLookup, FeatureShards
from layers.batch import Batch
from models.generalist import Generalist

_KEY = "model.init_args.features"


@dataclass
class FrozenFeatures:
    """Where features of frozen encoders are kept.

    Args:
        folder: A folder of the shards; every encoder gets one of its own in it.
        kinds: Modalities whose encoders are frozen.
        max_gib: Room that each encoder's folder may take.
    """

    folder: str
    kinds: Sequence[str] = field(default_factory=lambda: ["image"])
    max_gib: float = 50.0


class FeatureKeeper:
    """Completes packs with features that are not known yet, and keeps these.

    Items are encoded one by one, so that what is kept does not depend on what else was in the pack: a run with an empty
    folder, a full one or one that another run is filling gives the same weights to the bit.

    Args:
        settings: Where, and for which modalities.
        generalist: The model.
        precision: Of the trainer; features of another one are other features.

    Raises:
        ValueError: If a modality has no encoder, its encoder is trained, or its processor augments at random.
    """

    def __init__(self, settings: FrozenFeatures, generalist: Generalist, precision: str) -> None:
        check_frozen(settings, generalist)
        self.generalist = generalist
        self.shards = {}
        for kind in settings.kinds:
            name, about = _describe(generalist, kind, precision)
            self.shards[kind] = FeatureShards(Path(settings.folder) / name, about, int(settings.max_gib * 2**30))

    @property
    def lookup(self) -> FeatureLookup:
        """For the data workers."""
        return FeatureLookup(self.shards)

    @torch.no_grad()
    def complete(self, pack: Batch) -> None:
        """Encode what was not found."""
        for kind in set(pack.media) & set(self.shards):
            media = pack.media[kind]
            if not media.contents:  # no lookup saw this pack
                continue
            for place, known in enumerate(media.features):
                if known is None:
                    item, layout = media.items[place], type(media.layout)([media.layout.items[place]])
                    media.features[place] = features = self.generalist.encode(kind, [item], layout)
                    self.shards[kind].add(media.contents[place], features)

    def flush(self) -> None:
        """Write what waits."""
        for shards in self.shards.values():
            shards.flush()

    def report(self) -> str:
        """What is kept, per modality."""
        told = []
        for kind, own in self.shards.items():
            room = f"{own.num_bytes / 2**30:.2f} of {own.max_bytes / 2**30:.1f} GiB"
            left_out = f", {own.left_out} left out" if own.left_out else ""
            told.append(f"{kind}: {len(own)} items, {own.written} of them new{left_out}, {room} in '{own.folder}'")
        return "; ".join(told)


def check_frozen(settings: FrozenFeatures, generalist: Generalist) -> None:
    """Refuse to keep what changes; errors as of :class:`FeatureKeeper`."""
    for kind in settings.kinds:
        if kind not in generalist.encoders:
            raise ValueError(f"{_KEY}.kinds: expected some of {sorted(generalist.encoders)}, got '{kind}'")
        encoder = generalist.encoders[kind]
        trained = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
        if trained:
            raise ValueError(
                f"{_KEY}.kinds: expected frozen encoders, but model.init_args.trainable trains "
                f"'encoders.{kind}.{trained[0]}' and {len(trained) - 1} more"
            )
        if getattr(encoder.processor, "random", False):
            raise ValueError(
                f"{_KEY}.kinds: expected processors that treat an item alike every time, but that of '{kind}' "
                f"({type(encoder.processor).__name__}) augments at random"
            )


def _describe(generalist: Generalist, kind: str, precision: str) -> tuple[str, dict[str, object]]:
    """A folder's name, and what decides the features besides the items: weights, settings, precision, machine."""
    encoder = generalist.encoders[kind]
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    device = generalist.device
    hooks = {hook.__qualname__ for part in encoder.modules() for hook in part._forward_pre_hooks.values()}
    about: dict[str, object] = {
        "modality": kind,
        "encoder": f"{type(encoder).__module__}.{type(encoder).__qualname__}",
        "weights": digest.hexdigest(),
        "settings": repr(encoder),
        "processor": json.loads(json.dumps(encoder.processor.fingerprint())),  # type: ignore[operator, union-attr]
        "precision": precision,
        "hooks": sorted(hooks),  # parts that a callback keeps in full precision
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": re.sub(r"\+.*", "", torch.__version__),
    }
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return f"{kind}-{name}", about
