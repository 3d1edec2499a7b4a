"""Image encoders: a trainable pyramid from timm, and the towers of timm, transformers and open_clip as they are."""

from encoders.vision.open_clip_tower import OpenClipEncoder
from encoders.vision.processor import ImageProcessor, NativeProcessor, PixelNorm, TiledProcessor
from encoders.vision.pyramid import TimmEncoder, grid_positions
from encoders.vision.regions import Proposals, RegionEncoder
from encoders.vision.timm_tower import TimmTower
from encoders.vision.tower import VisionTower
from encoders.vision.transformers_tower import TransformersEncoder

__all__ = [
    "ImageProcessor",
    "NativeProcessor",
    "OpenClipEncoder",
    "PixelNorm",
    "Proposals",
    "RegionEncoder",
    "TiledProcessor",
    "TimmEncoder",
    "TimmTower",
    "TransformersEncoder",
    "VisionTower",
    "grid_positions",
]
