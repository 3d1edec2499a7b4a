"""Media files: a user's, decoded to what a conversation takes, and those of sounds and videos that heads make."""

from __future__ import annotations

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

from data.media import IMAGE_FORMATS, MediaError, Video, decode_media, encode_video, measure, resample
from data.records import Media
from layers.media import Audio, Graph


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


def _reason(error: Exception) -> str:
    return f"a file that does not decode ({type(error).__name__}: {error})"
