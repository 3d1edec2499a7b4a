"""Files: a user's media, decoded to what a conversation takes; what heads make, as media and as JSON."""

from __future__ import annotations

import base64
import io
import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image, ImageOps
from torch import Tensor

from data.media import (
    IMAGE_FORMATS,
    MediaError,
    Video,
    decode_media,
    decode_target,
    encode_mask,
    encode_png,
    encode_video,
    measure,
    resample,
)
from data.records import Media, Target
from inference.conversation import HeadError
from layers.calls import (
    AudioResult,
    BoxesResult,
    Call,
    EmbeddingResult,
    Grounding,
    ImageResult,
    LabelResult,
    MaskResult,
    MasksResult,
    NodeRef,
    RankingResult,
    Region,
    Result,
    ScoreResult,
    SelectionResult,
    TimeSpan,
    VideoResult,
)
from layers.media import Audio, Graph
from routers.parser import ParseError


def read_image(path: str | PathLike[str]) -> Tensor:
    """An image (3, H, W) uint8 RGB after EXIF orientation; the first frame of an animation.

    Raises:
        OSError: If the file cannot be read.
        MediaError: If it is not an image.
    """
    data = Path(path).read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            oriented = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"'{path}': expected an image of {', '.join(IMAGE_FORMATS)}, got {_reason(error)}") from None
    return torch.from_numpy(np.array(oriented)).permute(2, 0, 1).contiguous()


def read_audio(path: str | PathLike[str], sample_rate: int = 16000) -> Audio:
    """Audio of any format, rate and number of channels that libsndfile reads, mixed to mono and resampled.

    Raises:
        OSError: If the file cannot be read.
        MediaError: If it is not audio, is empty, or holds NaN or infinity.
    """
    data = Path(path).read_bytes()
    try:
        waveform, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, TypeError) as error:
        raise MediaError(f"'{path}': expected audio, got {_reason(error)}") from None
    if waveform.shape[0] == 0:
        raise MediaError(f"'{path}': expected audio, got an empty file")
    if not np.isfinite(waveform).all():
        raise MediaError(f"'{path}': expected finite samples, got NaN or infinity")
    return resample(Audio(torch.from_numpy(waveform.mean(axis=1)), rate), sample_rate)


def read_video(path: str | PathLike[str]) -> Video:
    """A video of any container and codec that FFmpeg reads, decoded once to know its size.

    Raises:
        OSError: If the file cannot be read.
        MediaError: If it is not a video.
    """
    data = Path(path).read_bytes()
    return Video(str(path), data, measure(str(path), data))


def read_graph(path: str | PathLike[str]) -> Graph:
    """A graph from JSON: ``{"node_texts": ["...", ...], "edge_index": [[sources], [targets]]}``.

    Nodes may have numbers, too, as ``"node_features"``: one row per node.

    Raises:
        OSError: If the file cannot be read.
        MediaError: If it is not such a graph, or an edge points past its nodes.
    """
    data = Path(path).read_bytes()
    try:
        nodes = len(json.loads(data)["node_texts"])
    except (ValueError, TypeError, KeyError) as error:
        expected = '{"node_texts": [...], "edge_index": [[...], [...]]}'
        raise MediaError(f"'{path}': expected {expected}, got {_reason(error)}") from None
    if nodes == 0:
        raise MediaError(f"'{path}': expected a graph with nodes, got none")
    graph = decode_media(Media("graph", Path(path).name, (nodes,)), data)
    assert isinstance(graph, Graph)
    return graph


def encode_audio(waveform: Tensor, sample_rate: int, kind: str = "flac") -> bytes:
    """A waveform (channels, samples), float in [-1, 1], as FLAC or WAV of 16 bits.

    Raises:
        ValueError: If it holds NaN or infinity, or ``kind`` is another.
    """
    if kind not in ("flac", "wav"):
        raise ValueError(f"kind: expected flac or wav, got {kind!r}")
    if not bool(waveform.isfinite().all()):
        raise ValueError("expected finite samples, got NaN or infinity")
    stream = io.BytesIO()
    samples = waveform.clamp(-1, 1).T.cpu().numpy()
    soundfile.write(stream, samples, sample_rate, format=kind.upper(), subtype="PCM_16")
    return stream.getvalue()


def encode_frames(frames: Tensor, fps: float) -> tuple[bytes, str]:
    """Frames (n, 3, H, W) uint8 as "mp4", or as an animated "gif" where PyAV (the extra ``video``) is missing.

    Returns:
        The bytes, and which of the two they are.

    Raises:
        ValueError: If there is no frame.
    """
    if not len(frames):
        raise ValueError("expected a video of at least one frame, got none")
    try:
        return encode_video(list(frames.cpu()), fps), "mp4"
    except ModuleNotFoundError:
        pictures = [Image.fromarray(np.ascontiguousarray(frame.permute(1, 2, 0).cpu().numpy())) for frame in frames]
    stream = io.BytesIO()
    rest: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "loop": 0}
    pictures[0].save(stream, "GIF", duration=max(20, round(1000 / fps)), **rest)
    return stream.getvalue(), "gif"


def call_to_json(call: Call) -> dict[str, Any]:
    """Task, prompt and groundings in the notation of records."""
    return {
        "task": call.task,
        "prompt": call.prompt,
        "groundings": [grounding_to_json(grounding) for grounding in call.groundings],
    }


def grounding_to_json(grounding: Grounding) -> dict[str, Any]:
    """A grounding in the notation of records (:class:`data.records.Part`)."""
    if isinstance(grounding, Region):
        canvas = {} if grounding.canvas is None else {"canvas": list(grounding.canvas)}
        return {"type": "region", "box_xyxy": [float(edge) for edge in grounding.box_xyxy], **canvas}
    if isinstance(grounding, TimeSpan):
        return {"type": "time_span", "start": grounding.start, "end": grounding.end}
    if isinstance(grounding, NodeRef):
        return {"type": "node", "index": grounding.index}
    return {"type": "result", "call_index": grounding.call_index}


def error_to_json(error: ParseError | HeadError) -> dict[str, Any]:
    """Kind and message; of a head's error also the call and the cause."""
    where = {"call_index": error.call_index, "cause": error.cause} if isinstance(error, HeadError) else {}
    return {"kind": error.kind, **where, "message": error.message}


def result_to_json(result: Result, with_data: bool = True) -> dict[str, Any]:
    """A result as JSON, and its notes.

    It is one of ``boxes``, ``mask`` and ``masks`` (COCO run-lengths), ``image`` (base64 PNG), ``audio`` (base64 FLAC),
    ``video`` (base64, its ``format`` MP4 or GIF), ``label``, ``score``, ``embedding`` (base64 of little-endian
    float32), ``ranking`` (names) and ``selection`` (indices).

    Args:
        result: The result.
        with_data: Whether masks, images, sounds and videos are part of it; else their size stands for them, as beside
            files that hold them.

    Raises:
        TypeError: For a result type that is none of these.
    """
    value = _value_to_json(result, with_data)
    return {**value, **({"notes": list(result.notes)} if result.notes else {})}


def _value_to_json(result: Result, with_data: bool) -> dict[str, Any]:
    if isinstance(result, BoxesResult):
        boxes = [[float(edge) for edge in box] for box in result.boxes_xyxy]
        return {"type": "boxes", "boxes_xyxy": boxes, **_scored(result)}
    if isinstance(result, LabelResult):
        probabilities = {name: float(value) for name, value in result.probabilities.items()}
        return {"type": "label", "label": result.label, "probabilities": probabilities}
    if isinstance(result, ScoreResult):
        return {"type": "score", "score": float(result.score)}
    if isinstance(result, EmbeddingResult):
        return {"type": "embedding", "float32": encode_vector(result.vector)}
    if isinstance(result, RankingResult):
        return {"type": "ranking", "items": list(result.items), "scores": [float(score) for score in result.scores]}
    if isinstance(result, SelectionResult):
        return {"type": "selection", "indices": list(result.indices), "score": float(result.score)}
    return _raster_to_json(result, with_data)


def _raster_to_json(result: Result, with_data: bool) -> dict[str, Any]:
    if isinstance(result, MaskResult):
        score = {} if result.score is None else {"score": float(result.score)}
        if with_data:
            return {"type": "mask", "mask": encode_mask(result.mask), **score}
        return {"type": "mask", "pixels": int(result.mask.sum()), "size": list(result.mask.shape[::-1]), **score}
    if isinstance(result, MasksResult):
        if with_data:
            return {"type": "masks", "masks": [encode_mask(mask) for mask in result.masks], **_scored(result)}
        pixels, size = [int(mask.sum()) for mask in result.masks], list(result.masks.shape[:0:-1])
        return {"type": "masks", "pixels": pixels, "size": size, **_scored(result)}
    if isinstance(result, ImageResult):
        if with_data:
            return {"type": "image", "png": encode_image(result.image)}
        return {"type": "image", "size": list(result.image.shape[:0:-1])}
    if isinstance(result, AudioResult):
        seconds = round(result.waveform.shape[1] / result.sample_rate, 3)
        if with_data:
            sound = _base64(encode_audio(result.waveform, result.sample_rate))
            return {"type": "audio", "format": "flac", "data": sound, "seconds": seconds}
        return {"type": "audio", "seconds": seconds, "sample_rate": result.sample_rate}
    if isinstance(result, VideoResult):
        about = {"frames": len(result.frames), "fps": result.fps}
        if with_data:
            data, kind = encode_frames(result.frames, result.fps)
            return {"type": "video", "format": kind, "data": _base64(data), **about}
        return {"type": "video", "size": list(result.frames.shape[:1:-1]), **about}
    raise TypeError(f"expected a result that has a JSON form, got {type(result).__name__}")


def _scored(result: BoxesResult | MasksResult) -> dict[str, Any]:
    labels = {"labels": list(result.labels)} if result.labels else {}
    return {"scores": [float(score) for score in result.scores], **labels}


def encode_image(image: Tensor) -> str:
    """An image (3, H, W) uint8 as base64 PNG."""
    return _base64(encode_png(image))


def decode_image(png: str) -> Tensor:
    """The inverse of :func:`encode_image`."""
    image: Tensor = decode_target(Target(type="image", file="image.png"), base64.b64decode(png))
    return image


def encode_vector(vector: Tensor) -> str:
    """A vector (d,) as base64 of little-endian float32."""
    return _base64(vector.float().cpu().numpy().astype("<f4").tobytes())


def decode_vector(data: str) -> Tensor:
    """The inverse of :func:`encode_vector`."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(data), dtype="<f4").astype(np.float32))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _reason(error: Exception) -> str:
    return f"a file that does not decode ({type(error).__name__}: {error})"
