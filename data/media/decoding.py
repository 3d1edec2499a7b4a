"""Decoders and encoders of media members and targets: the only code that touches the bytes of a shard."""

from __future__ import annotations

import io
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from data.media.error import MAX_PIXELS, MediaError
from data.media.jpeg import read_jpeg_header
from data.media.video import Video, measure
from data.records import Media, Target, parse_json
from layers.media import Audio, Graph

RawMedia = Tensor | Audio | Graph | Video
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_SAMPLES = 2**28
"""Of audio, over all channels: 4.6 hours at 16 kHz; longer audio is not decoded."""
_IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_GRAPH_FIELDS = {"node_texts", "edge_index"}
_FEATURES = "node_features"


def decode_media(media: Media, data: bytes) -> RawMedia:
    """Decode a media member and check it against its record.

    Args:
        media: What the record declares; of a size of (), which shards never hold, nothing is checked.
        data: The member's bytes.

    Returns:
        An image (3, H, W) uint8 after EXIF orientation, mono :class:`Audio` at the record's sample rate, a
        :class:`Graph`, or a :class:`Video`, whose frames are decoded when they are asked for.

    Raises:
        MediaError: Naming the file, what was expected and what was given.
    """
    if media.type == "image":
        return _decode_image(media.file, data, media.size or None)
    if media.type == "audio":
        return _decode_audio(media, data)
    if media.type == "graph":
        return _decode_graph(media, data)
    width, height, frames = media.size or measure(media.file, data)
    return Video(media.file, data, (width, height, frames))


def decode_target(target: Target, data: bytes | None = None) -> Any:
    """Decode a target to the value that a target processor takes.

    Args:
        target: The record's target.
        data: The bytes of its member, if it names one.

    Returns:
        A box as a list of 4 floats in original pixels, a mask (H, W) bool, an image (3, H, W) uint8, a string, indices
        (K,) int64 of an order, the mapping of a pair, or a float; of several boxes or masks, a list of
        ``{"box_xyxy": ..., "label": ...}`` or ``{"mask": ..., "label": ...}``, the label "" where there is none.

    Raises:
        MediaError: If it is malformed.
    """
    if target.file is not None and data is None:
        raise MediaError(f"{target.type} target: expected the member '{target.file}', got no bytes")
    if target.type == "image":
        if data is None:
            raise MediaError("image target: expected a member, got a value")
        return _decode_image(str(target.file), data, None)
    if target.type == "mask":
        if data is not None:
            return _decode_image(str(target.file), data, None).amax(0) > 0
        return decode_mask(target.value)
    if target.type == "box":
        return [float(edge) for edge in target.value]
    if target.type == "boxes":
        boxes = [[float(edge) for edge in item["box_xyxy"]] for item in target.value]
        return [{"box_xyxy": box, "label": _label(item)} for box, item in zip(boxes, target.value, strict=True)]
    if target.type == "masks":
        return [{"mask": decode_mask(item["mask"]), "label": _label(item)} for item in target.value]
    if target.type == "order":
        return torch.tensor(target.value, dtype=torch.int64)
    if target.type == "pair":
        return target.value
    if target.type == "label":
        if not isinstance(target.value, str):
            raise MediaError(f"label target: expected a string, got {target.value!r}")
        return target.value
    if isinstance(target.value, bool) or not isinstance(target.value, int | float) or not math.isfinite(target.value):
        raise MediaError(f"score target: expected a finite number, got {target.value!r}")
    return float(target.value)


def _label(item: Mapping[str, Any]) -> str:
    return str(item.get("label", ""))


def decode_mask(value: Any) -> Tensor:
    """Decode COCO run-length encoding: ``{"size": [H, W], "counts": compressed string or list of runs}``.

    Runs alternate between 0 and 1, column by column, and must fill the mask exactly.

    Returns:
        (H, W) bool.

    Raises:
        MediaError: If it is malformed.
    """
    if not isinstance(value, Mapping) or set(value) != {"size", "counts"}:
        raise MediaError(f"mask: expected a dictionary with 'size' and 'counts', got {value!r}")
    size, counts = value["size"], value["counts"]
    if not (isinstance(size, Sequence) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise MediaError(f"mask size: expected [height, width], got {size!r}")
    runs = _parse_counts(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(n) is int and n >= 0 for n in runs):
        raise MediaError(f"mask counts: expected non-negative runs, got {counts!r:.80}")
    height, width = size
    if height * width > MAX_PIXELS:
        raise MediaError(f"mask size: expected at most {MAX_PIXELS:,} pixels, got {height}x{width}")
    if sum(runs) != height * width:
        raise MediaError(f"mask counts: expected runs that add up to {height}x{width}, got {sum(runs)}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return torch.from_numpy(np.ascontiguousarray(flat.reshape(width, height).T))


def encode_mask(mask: Tensor) -> dict[str, Any]:
    """The inverse of :func:`decode_mask`, with compressed string counts (readable by pycocotools)."""
    height, width = mask.shape
    flat = mask.to(torch.bool).cpu().numpy().T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0], edges, [flat.size]])
    runs = np.diff(bounds).tolist()
    if flat[0]:
        runs = [0, *runs]
    return {"size": [height, width], "counts": _format_counts(runs)}


def encode_png(image: Tensor) -> bytes:
    """An image (3, H, W) or a mask (H, W), uint8 or bool, as PNG."""
    if image.dtype == torch.bool:
        image = image.to(torch.uint8) * 255
    if image.dtype != torch.uint8 or image.ndim not in (2, 3):
        raise MediaError(f"PNG: expected uint8 (3, H, W) or (H, W), got {image.dtype} {tuple(image.shape)}")
    array = image.cpu().numpy()
    stream = io.BytesIO()
    Image.fromarray(array if array.ndim == 2 else np.ascontiguousarray(array.transpose(1, 2, 0))).save(stream, "PNG")
    return stream.getvalue()


def encode_flac(waveform: Tensor, sample_rate: int = 16000) -> bytes:
    """A mono waveform (samples,) in [-1, 1] as 16-bit FLAC."""
    if waveform.ndim != 1 or waveform.numel() == 0:
        raise MediaError(f"FLAC: expected a waveform (samples,) that is not empty, got {tuple(waveform.shape)}")
    stream = io.BytesIO()
    soundfile.write(stream, waveform.float().cpu().numpy(), sample_rate, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def encode_graph(graph: Graph) -> bytes:
    """A graph as JSON: ``{"node_texts": [...], "edge_index": [[...], [...]]}``, and "node_features" if any."""
    value = {"node_texts": list(graph.node_texts), "edge_index": graph.edge_index.tolist()}
    if graph.node_features is not None:
        value[_FEATURES] = graph.node_features.tolist()
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def resample(audio: Audio, sample_rate: int) -> Audio:
    """The same audio at another sample rate (polyphase filter); its length is :func:`resampled_length`."""
    if audio.sample_rate == sample_rate:
        return audio
    from scipy.signal import resample_poly  # as large as all the rest of this room's imports

    divisor = math.gcd(audio.sample_rate, sample_rate)
    up, down = sample_rate // divisor, audio.sample_rate // divisor
    waveform = resample_poly(audio.waveform.numpy(), up, down).astype(np.float32)
    return Audio(torch.from_numpy(waveform), sample_rate)


def resampled_length(samples: int, from_rate: int, to_rate: int) -> int:
    """The number of samples after :func:`resample`, without doing it."""
    return -(-samples * to_rate // from_rate)


def _decode_image(file: str, data: bytes, size: tuple[int, ...] | None) -> Tensor:
    jpeg = read_jpeg_header(data)
    try:
        if jpeg is not None and jpeg.components == 3:
            _check_size(file, (jpeg.width, jpeg.height), size)
            raster = _decode_jpeg(data)
        else:
            raster = _decode_through_pil(file, data, size)
    except MediaError:
        raise
    except _IMAGE_ERRORS as error:
        raise MediaError(
            f"'{file}': expected an image of {IMAGE_FORMATS}, got one that does not decode: {error}"
        ) from None
    if size is not None and (raster.shape[2], raster.shape[1]) != size:
        _refuse_size(file, size, (raster.shape[2], raster.shape[1]))
    return raster


def _decode_through_pil(file: str, data: bytes, size: tuple[int, ...] | None) -> Tensor:
    with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
        _check_size(file, image.size, size)
        if getattr(image, "is_animated", False) and image.format != "MPO":  # of a stereo photograph, the first is meant
            raise MediaError(f"'{file}': expected a still image, got one of several frames")
        return _raster(file, image)


def _check_size(file: str, given: tuple[int, int], expected: tuple[int, ...] | None) -> None:
    """Refuse what is not declared, or too large, before any memory is taken; an orientation may swap the sides."""
    if expected is not None and given not in (expected, expected[::-1]):
        _refuse_size(file, expected, given)
    if given[0] * given[1] > MAX_PIXELS:
        raise MediaError(f"'{file}': expected at most {MAX_PIXELS:,} pixels, got {given[0]}x{given[1]}")


def _decode_jpeg(data: bytes) -> Tensor:
    """(3, H, W) after EXIF orientation, a view of (H, W, 3); half as long as through PIL, with the same pixels."""
    try:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)  # torch warns of memory that it may not write
        return decode_jpeg(encoded, ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from None


def _raster(file: str, image: Image.Image) -> Tensor:
    if image.mode.startswith("I;16"):  # PIL would cut 16 bits off at 255
        array = (np.asarray(image).astype(np.uint32) + 128) // 257
        image = _with_orientation(Image.fromarray(array.astype(np.uint8)), image)
    elif image.mode in ("I", "F"):
        raise MediaError(f"'{file}': expected 8 or 16 bits per channel, got the mode '{image.mode}'")
    oriented = ImageOps.exif_transpose(image).convert("RGB")
    return torch.from_numpy(np.array(oriented)).permute(2, 0, 1).contiguous()


def _with_orientation(image: Image.Image, original: Image.Image) -> Image.Image:
    image.getexif().update(original.getexif())
    return image


def _refuse_size(file: str, expected: tuple[int, ...], given: tuple[int, ...]) -> None:
    raise MediaError(f"'{file}': expected an image of (width, height) {tuple(expected)}, got {tuple(given)}")


def _decode_audio(media: Media, data: bytes) -> Audio:
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as stream:
            rate = media.sample_rate or stream.samplerate
            samples = resampled_length(stream.frames, stream.samplerate, rate)
            if stream.frames == 0:
                raise MediaError(f"'{media.file}': expected audio, got an empty file")
            if stream.frames * stream.channels > MAX_SAMPLES:
                given = f"{stream.frames} in {stream.channels} channels"
                raise MediaError(f"'{media.file}': expected at most {MAX_SAMPLES:,} samples, got {given}")
            if media.size not in ((), (samples,)):
                raise MediaError(f"'{media.file}': expected {media.size[0]} samples at {rate} Hz, got {samples}")
            channels = stream.read(dtype="float32", always_2d=True)
            waveform = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1)
            audio = Audio(torch.from_numpy(waveform), stream.samplerate)
    except (soundfile.SoundFileError, TypeError) as error:
        raise MediaError(f"'{media.file}': expected audio, got bytes that do not decode: {error}") from None
    if not (math.isfinite(float(audio.waveform.sum())) or bool(audio.waveform.isfinite().all())):  # the sum is quicker
        raise MediaError(f"'{media.file}': expected finite samples, got NaN or infinity")
    audio = resample(audio, rate)
    if audio.waveform.shape[0] != samples:
        raise MediaError(f"'{media.file}': expected {samples} samples at {rate} Hz, got {audio.waveform.shape[0]}")
    return audio


def _decode_graph(media: Media, data: bytes) -> Graph:
    try:
        value = parse_json(data)
    except ValueError as error:
        raise MediaError(f"'{media.file}': expected a graph as JSON, got: {error}") from None
    if not isinstance(value, dict) or set(value) - {_FEATURES} != _GRAPH_FIELDS:
        given = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise MediaError(f"'{media.file}': expected the fields {sorted(_GRAPH_FIELDS)}, got {given}")
    texts, edges = value["node_texts"], value["edge_index"]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise MediaError(f"'{media.file}' node_texts: expected a list of strings, got {texts!r:.80}")
    if media.size not in ((), (len(texts),)):
        raise MediaError(f"'{media.file}': expected {media.size[0]} nodes, got {len(texts)}")
    good = isinstance(edges, list) and len(edges) == 2 and all(isinstance(row, list) for row in edges)
    if not good or len(edges[0]) != len(edges[1]) or not all(type(node) is int for row in edges for node in row):
        raise MediaError(f"'{media.file}' edge_index: expected two lists of node indices, got {edges!r:.80}")
    outside = sorted({node for row in edges for node in row if not 0 <= node < len(texts)})
    if outside:
        raise MediaError(f"'{media.file}' edge_index: expected nodes 0 to {len(texts) - 1}, got {outside[:5]}")
    features = _node_features(value[_FEATURES], len(texts), media.file) if _FEATURES in value else None
    return Graph(tuple(texts), torch.tensor(edges, dtype=torch.int64).reshape(2, -1), features)


def _node_features(rows: Any, nodes: int, file: str) -> Tensor:
    """(nodes, width) float32."""
    try:
        features = torch.tensor(rows, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        features = torch.empty(0)
    if features.dim() != 2 or len(features) != nodes or not features.numel():
        raise MediaError(f"'{file}' {_FEATURES}: expected {nodes} rows of as many numbers, got {rows!r:.80}")
    if not bool(features.isfinite().all()):
        raise MediaError(f"'{file}' {_FEATURES}: expected finite numbers, got {rows!r:.80}")
    return features


def _format_counts(runs: Sequence[int]) -> str:
    """COCO's compression: runs from the fourth on as differences to two before, in signed base-32 digits."""
    characters = []
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        more = True
        while more:
            digit = value & 0x1F
            value >>= 5
            more = value != -1 if digit & 0x10 else value != 0
            characters.append(chr((digit | 0x20 if more else digit) + 48))
    return "".join(characters)


def _parse_counts(text: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            raise MediaError(f"mask counts: expected COCO's run-length characters, got {character!r}")
        value |= (digit & 0x1F) << shift
        shift += 5
        if shift > 60:
            raise MediaError("mask counts: expected runs below 2**60, got a longer one")
        if digit & 0x20:
            continue
        if digit & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise MediaError("mask counts: expected a complete string, got one that breaks off")
    return runs
