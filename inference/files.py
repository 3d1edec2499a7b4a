"""Media files of a user, decoded to what a conversation takes."""

from __future__ import annotations

import io
import json
from os import PathLike
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image, ImageOps
from torch import Tensor

from data.media import IMAGE_FORMATS, MediaError, Video, decode_media, measure, resample
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


def _reason(error: Exception) -> str:
    return f"a file that does not decode ({type(error).__name__}: {error})"
