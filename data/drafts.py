"""A record while it is being put together: media and targets are added as bytes, sizes are read from them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile
import torch
from PIL import Image

from data.media import IMAGE_FORMATS, MAX_PIXELS, MediaError, encode_graph, encode_mask, measure
from data.records import Media, MediaType, Message, Part, Record, Target
from layers.media import Graph

_EXTENSIONS = {"JPEG": "jpg", "TIFF": "tif"}
_AUDIO_EXTENSIONS = {"MPEG": "mp3", "MP3": "mp3", "OGG": "ogg", "FLAC": "flac", "WAV": "wav", "WAVEX": "wav"}


@dataclass(frozen=True)
class Origin:
    """What all records of a data set share.

    Args:
        source: Where they come from.
        license: SPDX identifier, or a sentence.
        split: "train", "val" or "test".
    """

    source: str
    license: str
    split: str


@dataclass
class Draft:
    """A record in the making, with its members.

    Args:
        key: Its key.
        task: Its task.
        origin: What it shares with the others.
    """

    key: str
    task: str
    origin: Origin
    media: dict[str, Media] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    targets: dict[str, Target] = field(default_factory=dict)
    members: dict[str, bytes] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    companions: list[tuple[Message, ...]] = field(default_factory=list)

    def add_image(self, data: bytes, name: str = "image") -> tuple[int, int]:
        """Add an image as it is, without decoding its pixels; returns (width, height) after EXIF orientation.

        Raises:
            MediaError: If it is no image, or too large.
        """
        size, extension = image_size(data, name)
        self._add("image", name, extension, data, size)
        return size

    def add_audio(self, data: bytes, name: str = "audio") -> float:
        """Add a clip as it is; returns its seconds.

        Raises:
            MediaError: If it does not open as audio, or is empty.
        """
        try:
            info = soundfile.info(io.BytesIO(data))
        except soundfile.SoundFileError as error:
            raise MediaError(f"'{name}': expected audio, got bytes that do not open: {error}") from None
        if info.frames < 1:
            raise MediaError(f"'{name}': expected audio samples, got none")
        self._add("audio", name, _extension_of(info.format), data, (info.frames,), info.samplerate)
        return float(info.frames / info.samplerate)

    def add_video(self, data: bytes, file: str, name: str = "video") -> tuple[int, int, int]:
        """Add a video as it is; returns (width, height, frames), found by decoding it once.

        Args:
            data: Its bytes.
            file: The file that they come from; its ending is kept, and "mp4" stands for none.
            name: Of the medium.

        Raises:
            MediaError: If it does not decode.
        """
        size = measure(file, data)
        self._add("video", name, Path(file).suffix[1:].lower() or "mp4", data, size)
        return size

    def add_graph(self, graph: Graph, name: str = "graph") -> None:
        """Add a graph.

        Raises:
            MediaError: If it has no node, or an edge to nowhere.
        """
        count = graph.num_nodes
        if count < 1:
            raise MediaError(f"'{name}': expected at least one node, got none")
        edges = graph.edge_index
        outside = edges[(edges < 0) | (edges >= count)].unique().tolist()
        if outside:
            raise MediaError(f"'{name}' edge_index: expected nodes 0 to {count - 1}, got {outside[:5]}")
        self._add("graph", name, "json", encode_graph(graph), (count,))

    def add_target(self, kind: str, value: Any = None, image: bytes | None = None) -> str:
        """Add a target; returns its id.

        Args:
            kind: Its type.
            value: Its value, unless ``image`` holds it.
            image: An image that becomes a member as it is.
        """
        name = f"t{len(self.targets)}"
        if image is None:
            self.targets[name] = Target(kind, value=value)
            return name
        _, extension = image_size(image, name)
        self.targets[name] = Target(kind, file=f"{name}.{extension}")
        self.members[f"{name}.{extension}"] = image
        return name

    def call(self, task: str, prompt: str = "", target: str | None = None, box: Sequence[float] | None = None) -> Part:
        """A call part, with a region if a box in original pixels is given."""
        groundings: tuple[Mapping[str, Any], ...] = ()
        if box is not None:
            groundings = ({"type": "region", "box_xyxy": list(box)},)
        return Part("call", task=task, prompt=prompt, groundings=groundings, target=target)

    def mask_target(self, mask: torch.Tensor) -> str:
        """Add a mask (H, W) of an image's size as a target; returns its id."""
        return self.add_target("mask", encode_mask(mask))

    def user(self, *parts: str | Part) -> None:
        """A user turn; strings are text."""
        self.messages.append(Message("user", self._parts(parts)))

    def assistant(self, *parts: str | Part) -> None:
        """An assistant turn."""
        self.messages.append(Message("assistant", self._parts(parts)))

    def system(self, *parts: str | Part) -> None:
        """A system turn."""
        self.messages.append(Message("system", self._parts(parts)))

    def next_conversation(self) -> None:
        """Begin a conversation that is read apart from those before it."""
        self.companions.append(tuple(self.messages))
        self.messages = []

    def medium(self, name: str) -> Part:
        """The part that shows a medium."""
        return Part(self.media[name].type, media=name)

    def finish(self) -> tuple[Record, dict[str, bytes]]:
        """The record and its members."""
        first, *others = (*self.companions, tuple(self.messages))
        record = Record(
            key=self.key,
            task=self.task,
            source=self.origin.source,
            license=self.origin.license,
            split=self.origin.split,
            messages=first,
            media=self.media,
            targets=self.targets,
            meta=self.meta,
            companions=tuple(others),
        )
        return record, self.members

    def _parts(self, parts: Sequence[str | Part]) -> tuple[Part, ...]:
        return tuple(Part("text", text=part) if isinstance(part, str) else part for part in parts)

    def _add(
        self, kind: MediaType, name: str, extension: str, data: bytes, size: tuple[int, ...], rate: int | None = None
    ) -> None:
        if name in self.media:
            raise MediaError(f"media '{name}': expected a new name, got one that is taken")
        file = f"{name}.{extension}"
        self.media[name] = Media(kind, file, size, rate)
        self.members[file] = data


def audio_extension(data: bytes) -> str:
    """The file extension of an encoded clip, from its header."""
    return _extension_of(soundfile.info(io.BytesIO(data)).format)


def _extension_of(container: str) -> str:
    return _AUDIO_EXTENSIONS.get(container, container.lower())


def image_size(data: bytes, name: str = "image") -> tuple[tuple[int, int], str]:
    """(width, height) after EXIF orientation and the file extension of an encoded image, from its header.

    Raises:
        MediaError: If it is no image of a known format, or has more than :data:`MAX_PIXELS`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            extension = _EXTENSIONS.get(str(image.format), str(image.format).lower())
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(
            f"'{name}': expected an image of {IMAGE_FORMATS}, got one that does not open: {error}"
        ) from None
    if width * height > MAX_PIXELS:
        raise MediaError(f"'{name}': expected at most {MAX_PIXELS:,} pixels, got {width}x{height}")
    return ((height, width) if turned else (width, height)), extension
