"""Media and targets: from the bytes of a shard's members to tensors, and back."""

from data.media.decoding import (
    IMAGE_FORMATS,
    MAX_SAMPLES,
    RawMedia,
    decode_mask,
    decode_media,
    decode_target,
    encode_flac,
    encode_graph,
    encode_mask,
    encode_png,
    resample,
    resampled_length,
)
from data.media.error import MAX_PIXELS, MediaError
from data.media.video import Video, encode_video, measure

__all__ = [
    "IMAGE_FORMATS",
    "MAX_PIXELS",
    "MAX_SAMPLES",
    "MediaError",
    "RawMedia",
    "Video",
    "decode_mask",
    "decode_media",
    "decode_target",
    "encode_flac",
    "encode_graph",
    "encode_mask",
    "encode_png",
    "encode_video",
    "measure",
    "resample",
    "resampled_length",
]
