"""The header that we read ourselves says what PIL's decoder says."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from data.media.jpeg import JpegHeader, read_jpeg_header


def encoded(mode: str, size: tuple[int, int], **options: object) -> bytes:
    rng = np.random.default_rng(0)
    channels = {"L": (), "RGB": (3,), "CMYK": (4,)}[mode]
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8), mode)
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.parametrize(("mode", "components"), [("L", 1), ("RGB", 3), ("CMYK", 4)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"\xff\xc0 not a frame"}])
def test_size_and_components(mode: str, components: int, options: dict[str, object]) -> None:
    assert read_jpeg_header(encoded(mode, (37, 21), **options)) == JpegHeader(37, 21, components)


def test_segments_before_the_frame_are_skipped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded("RGB", (8, 6), exif=exif, icc_profile=b"x" * 70_000)
    assert read_jpeg_header(data) == JpegHeader(8, 6, 3)
    filled = data[:2] + b"\xff\xff" + data[2:]
    assert read_jpeg_header(filled) == JpegHeader(8, 6, 3)


@pytest.mark.parametrize("cut", [0, 2, 3, 10, 100])
def test_what_ends_before_its_frame_has_no_header(cut: int) -> None:
    assert read_jpeg_header(encoded("RGB", (8, 6))[:cut]) is None


def test_other_formats_have_no_jpeg_header() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    assert read_jpeg_header(stream.getvalue()) is None
