"""What is wrong with media, and how large they may be."""

MAX_PIXELS = 64_000_000
"""Of an image, a mask or a video's frame; one that declares more is refused before any memory is taken for it."""


class MediaError(ValueError):
    """Media or a target that does not decode, or is not what the record declares; names expected and given."""
