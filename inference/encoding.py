"""Media of a batch of conversations on their way into prompts and heads: each distinct item is encoded once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from data.media import RawMedia, Video
from data.media.results import kind_made
from data.render import Rendered, RenderedMedia
from data.render.made import processed, stills_made
from data.render.shown import Still
from inference.past import Symbols
from layers.batch import MediaBatch
from layers.calls import MediaFeatures, Result
from layers.geometry import GeometricTransform
from layers.layout import ItemLayout, Layout
from models.generalist import Generalist
from models.media import EncodedMedia, seen_by_heads
from models.plan import BatchPlan

FeatureTransform = Callable[[dict[str, EncodedMedia]], dict[str, EncodedMedia]]


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt as the language model and the heads take it.

    Args:
        embeds: (L, d) input embeddings, media in place.
        symbols: What stands at each position; rows with equal beginnings have equal embeddings there.
        media: What heads see, in order.
        keys: Of the media: equal keys, equal content.
    """

    embeds: Tensor
    symbols: Symbols
    media: list[MediaFeatures]
    keys: tuple[Hashable, ...]


@dataclass(frozen=True)
class _Encoded:
    """One item: features (N, d) for heads, projected (N', d_llm) for the language model."""

    features: Tensor
    layout: ItemLayout
    projected: Tensor

    def copied(self) -> _Encoded:
        """The same apart from the batch, of which it is a view."""
        return _Encoded(self.features.clone(), self.layout, self.projected.clone())


class PromptReader:
    """Encodes media and puts them into prompts.

    Args:
        generalist: The model.
        max_frames: Frames that stand for a video.
        memory: Positions of the language model whose encoded media are remembered between batches.
    """

    def __init__(self, generalist: Generalist, max_frames: int, memory: int = 0) -> None:
        self.generalist, self.max_frames, self.memory = generalist, max_frames, memory
        self._memory: OrderedDict[Hashable, _Encoded] = OrderedDict()

    def read(
        self,
        prompts: Sequence[Rendered],
        keys: Sequence[tuple[Hashable, ...]],
        originals: Sequence[Mapping[str, RawMedia]],
        transform: FeatureTransform | None = None,
    ) -> list[ReadPrompt]:
        """Read a batch of prompts.

        Args:
            prompts: Rendered.
            keys: Of their media (:func:`media_keys`).
            originals: Per prompt its conversation's media as they were before the processor.
            transform: Changes the encoded media of the batch; with it every use of an item is an item of its own.
        """
        uses = [pair for prompt, own in zip(prompts, keys, strict=True) for pair in zip(prompt.media, own, strict=True)]
        if transform is not None:
            uses = [(item, (index, "transformed")) for index, (item, _) in enumerate(uses)]
        encoded = self._encode(uses, transform)
        generalist, device = self.generalist, self.generalist.device
        ids = torch.tensor([token for prompt in prompts for token in prompt.input_ids], device=device)
        embeds, offset, found = generalist.embed(ids), 0, iter(uses)
        places, projected, rows = list[int](), list[Tensor](), []
        for prompt, conversation in zip(prompts, originals, strict=True):
            loader, media, used_keys = (
                _Originals(conversation, self.max_frames),
                list[MediaFeatures](),
                list[Hashable](),
            )
            symbols: list[Hashable] = list(prompt.input_ids)
            for used in prompt.media:
                item, key = next(found)
                own = encoded[key]
                places += (offset + position for position in used.positions)
                projected.append(own.projected)
                inputs = {name: value.to(device) for name, value in item.inputs.items()}
                features = seen_by_heads(used.kind, own.layout, inputs, own.features)
                features.load_original = partial(loader, used.name, used.frame)
                media.append(features)
                used_keys.append(key)
                for index, position in enumerate(used.positions):
                    symbols[position] = (key, index)
            if prompt.instruction:
                symbols[0] = (symbols[0], tuple(prompt.instruction))  # what it says conditions every position
            offset += len(prompt.input_ids)
            rows.append((tuple(symbols), media, tuple(used_keys)))
        if projected:
            embeds = generalist.place(embeds, torch.tensor(places, device=device), torch.cat(projected))
        pieces = torch.split(embeds, [len(prompt.input_ids) for prompt in prompts])
        return [ReadPrompt(piece, *row) for piece, row in zip(pieces, rows, strict=True)]

    def see(self, result: Result) -> list[MediaFeatures]:
        """What heads see of an image, a sound or a video that a head made; the last frame of a video comes last.

        Without an encoder for it, images have no features: experts look at the pixels. Sounds are then left out.

        Raises:
            ValueError: If the processor of its modality refuses it.
        """
        kind = kind_made(result)
        seen = [self._see(kind, *still) for still in stills_made(result, self.max_frames)]
        return [item for item in seen if item is not None]

    @cached_property
    def _plan(self) -> BatchPlan:
        return self.generalist.plan()

    def _see(self, kind: str, still: Still, seconds: float | None) -> MediaFeatures | None:
        device = self.generalist.device
        if kind in self._plan.processors:
            inputs, layout = processed(still, seconds, kind, self._plan)
            inputs = {name: value.to(device) for name, value in inputs.items()}
            seen = seen_by_heads(kind, layout, inputs, self.generalist.encode(kind, [inputs], Layout([layout])))
        elif isinstance(still, Tensor):
            size = (still.shape[2], still.shape[1])
            layout = ItemLayout((0,), size, GeometricTransform.identity(size), seconds)
            seen = MediaFeatures(kind, torch.zeros(0, 0, device=device), layout)
        else:
            return None
        seen.load_original = lambda: still
        return seen

    def _encode(
        self, uses: Sequence[tuple[RenderedMedia, Hashable]], transform: FeatureTransform | None
    ) -> dict[Hashable, _Encoded]:
        distinct = {key: item for item, key in uses}
        known = {key: self._memory[key] for key in distinct if key in self._memory}
        for key in known:
            self._memory.move_to_end(key)
        new = {key: item for key, item in distinct.items() if key not in known}
        kinds: dict[str, list[Hashable]] = {}
        for key, item in new.items():
            kinds.setdefault(item.kind, []).append(key)
        batches = {kind: _batch([new[key] for key in keys]).to(self.generalist.device) for kind, keys in kinds.items()}
        encoded = self.generalist.encode_media(batches)
        if transform is not None:
            encoded = transform(encoded)
        for kind, keys in kinds.items():
            for key, made in zip(keys, _split(encoded[kind]), strict=True):
                known[key] = made
                if transform is None and self.memory:
                    self._memory[key] = made.copied()
        while sum(item.projected.shape[0] for item in self._memory.values()) > self.memory:
            self._memory.popitem(last=False)
        return known


def _batch(items: Sequence[RenderedMedia]) -> MediaBatch:
    return MediaBatch(
        items=[item.inputs for item in items],
        layout=Layout([item.layout for item in items]),
        token_lengths=[len(item.positions) for item in items],
        segments=torch.zeros(len(items), dtype=torch.int64),
        positions=torch.zeros(0, dtype=torch.int64),
    )


def _split(encoded: EncodedMedia) -> Iterator[_Encoded]:
    features = encoded.layout.split(encoded.features)
    projected = encoded.projected_layout.split(encoded.projected)
    for layout, own, tokens in zip(encoded.layout.items, features, projected, strict=True):
        yield _Encoded(own, layout, tokens)


def media_keys(prompt: Rendered) -> tuple[Hashable, ...]:
    """Of each medium a digest of all that its encoder and its projector depend on."""
    return tuple(_fingerprint(item) for item in prompt.media)


def _fingerprint(item: RenderedMedia) -> Hashable:
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(item.inputs.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().cpu().flatten().view(torch.uint8).numpy().data)
    return item.kind, repr(item.layout), digest.digest()


class _Originals:
    """A conversation's media as they were before the processor; a video is decoded once for all its frames."""

    def __init__(self, media: Mapping[str, RawMedia], max_frames: int) -> None:
        self._media, self._max_frames = media, max_frames
        self._frames: dict[str, list[Tensor]] = {}

    def __call__(self, name: str, frame: int) -> RawMedia:
        raw = self._media[name]
        if not isinstance(raw, Video):
            return raw
        if name not in self._frames:
            self._frames[name] = raw.sample(self._max_frames)[0]
        return self._frames[name][frame]
