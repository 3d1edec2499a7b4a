"""The header of a JPEG file, read without opening a decoder: half the time of a small picture goes into that."""

from __future__ import annotations

from dataclasses import dataclass

_START = b"\xff\xd8\xff"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # of these markers, three do not begin a frame
_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers that no length follows


@dataclass(frozen=True)
class JpegHeader:
    """What a JPEG file says of its picture.

    Args:
        width: In pixels, before any orientation.
        height: Likewise.
        components: 1 is grey, 3 is colour, 4 is for print.
    """

    width: int
    height: int
    components: int


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """The header of a baseline, extended or progressive JPEG file (ITU-T T.81, B.2); None for anything else."""
    if data[:3] != _START:
        return None
    place = 2
    while place + 9 < len(data):
        if data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            place += 1
        elif marker in _ALONE:
            place += 2
        elif marker in _FRAMES:
            height = int.from_bytes(data[place + 5 : place + 7], "big")
            width = int.from_bytes(data[place + 7 : place + 9], "big")
            return JpegHeader(width, height, data[place + 9]) if data[place + 4] == 8 else None
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None
