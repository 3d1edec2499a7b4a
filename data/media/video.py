"""Video: frames evenly spaced over a clip, decoded by FFmpeg (PyAV) when they are asked for."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.media.error import MAX_PIXELS, MediaError


@dataclass(frozen=True)
class Video:
    """A clip that is not decoded yet.

    Args:
        file: Its name, for messages.
        data: The bytes of any container that FFmpeg reads.
        size: (width, height, frames) as a player shows it: after the rotation that phones write into a clip.
    """

    file: str
    data: bytes
    size: tuple[int, int, int]

    def sample(self, count: int) -> tuple[list[Tensor], list[float]]:
        """Frames from the middles of ``count`` equal stretches of the clip; all frames of a shorter one.

        Args:
            count: Frames wanted, at least one.

        Returns:
            (3, H, W) uint8 rasters in order, and their times in seconds.

        Raises:
            MediaError: If the clip does not decode, or has another size or fewer frames than declared.
            ModuleNotFoundError: Without PyAV (the extra ``video``).
        """
        wanted = frame_places(self.size[2], count)
        rasters, seconds, next_wanted = [], [], 0
        for index, (frame, time) in enumerate(_frames(self.file, self.data)):
            if index == wanted[next_wanted]:
                rasters.append(_raster(self.file, frame, self.size[:2]))
                seconds.append(time)
                next_wanted += 1
                if next_wanted == len(wanted):
                    return rasters, seconds
        raise MediaError(f"'{self.file}': expected {self.size[2]} frames, got {index + 1}")

    def check(self) -> None:
        """Decode the whole clip.

        Raises:
            MediaError: As :meth:`sample`, and if it has more frames than declared.
        """
        found = measure(self.file, self.data)
        if found != self.size:
            raise MediaError(f"'{self.file}': expected (width, height, frames) {self.size}, got {found}")


def frame_places(frames: int, count: int) -> list[int]:
    """Indices of the frames that stand for a clip: the middles of ``count`` equal stretches, all of a shorter clip."""
    if count < 1:
        raise ValueError(f"expected at least one frame, got {count}")
    return list(range(frames)) if frames <= count else [(2 * i + 1) * frames // (2 * count) for i in range(count)]


def measure(file: str, data: bytes) -> tuple[int, int, int]:
    """(width, height, frames) of a clip, by decoding it: what a container declares is often missing or wrong.

    Raises:
        MediaError: If it does not decode.
        ModuleNotFoundError: Without PyAV (the extra ``video``).
    """
    size, count = (0, 0), 0
    for frame, _ in _frames(file, data):
        sides = (frame.height, frame.width) if _quarter_turns(frame) % 2 else (frame.width, frame.height)
        if count and sides != size:
            raise MediaError(f"'{file}': expected frames of one size, got {size} and {sides}")
        size, count = sides, count + 1
    return (*size, count)


def encode_video(rasters: Sequence[Tensor], frames_per_second: float, codec: str = "libx264") -> bytes:
    """Frames (3, H, W) uint8 as MP4; with the codec "ffv1" as Matroska, without loss.

    MP4 has even sides: an odd one gets a row or column more, equal to its last.

    Raises:
        ModuleNotFoundError: Without PyAV (the extra ``video``).
    """
    av = _library()
    stream, lossless = io.BytesIO(), codec == "ffv1"
    with av.open(stream, "w", format="matroska" if lossless else "mp4") as container:
        track = container.add_stream(codec, rate=Fraction(frames_per_second).limit_denominator(1001))
        height, width = rasters[0].shape[1:]
        odd = (0, 0) if lossless else (width % 2, height % 2)
        track.height, track.width = height + odd[1], width + odd[0]
        track.pix_fmt = "bgr0" if lossless else "yuv420p"
        for raster in rasters:
            pixels = np.pad(raster.permute(1, 2, 0).numpy(), ((0, odd[1]), (0, odd[0]), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return stream.getvalue()


def _frames(file: str, data: bytes) -> Iterator[tuple[Any, float]]:
    """Frames, and their seconds since the clip's start."""
    av, found = _library(), False
    try:
        with av.open(io.BytesIO(data), metadata_errors="ignore") as container:
            if not container.streams.video:
                raise MediaError(f"'{file}': expected a video, got a file without one")
            track = container.streams.video[0]
            track.codec_context.thread_count = 1  # workers are many already
            if track.codec_context.width * track.codec_context.height > MAX_PIXELS:
                given = f"{track.codec_context.width}x{track.codec_context.height}"
                raise MediaError(f"'{file}': expected frames of at most {MAX_PIXELS:,} pixels, got {given}")
            for index, frame in enumerate(container.decode(track)):
                found = True
                yield frame, _seconds(frame, track, index)
    except (av.FFmpegError, EOFError) as error:
        raise MediaError(f"'{file}': expected a video, got bytes that do not decode: {error}") from None
    if not found:
        raise MediaError(f"'{file}': expected a video, got one without frames")


def _seconds(frame: Any, track: Any, index: int) -> float:
    """By the frame's stamp; by the frame rate where a container (AVI) gives it none."""
    stamp = frame.pts if frame.pts is not None else frame.dts
    if stamp is None:
        return index / float(track.average_rate or track.guessed_rate)
    return float((stamp - (track.start_time or 0)) * track.time_base)


def _raster(file: str, frame: Any, size: Sequence[int]) -> Tensor:
    raster = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    raster = torch.rot90(raster, _quarter_turns(frame), (1, 2)).contiguous()
    if (raster.shape[2], raster.shape[1]) != tuple(size):
        given = (raster.shape[2], raster.shape[1])
        raise MediaError(f"'{file}': expected frames of (width, height) {tuple(size)}, got {given}")
    return raster


def _quarter_turns(frame: Any) -> int:
    """Turns counter-clockwise that bring a frame upright, as its display matrix says."""
    return round(frame.rotation / 90) % 4


def _library() -> Any:
    try:
        import av
    except ImportError:
        raise ModuleNotFoundError("video: expected the package av; install the extra 'video'", name="av") from None
    return av
