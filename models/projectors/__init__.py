"""Projectors: encoder features to language-model width, and how many tokens an item becomes."""

from models.projectors.anyres import AnyresProjector, AnyresRule
from models.projectors.grids import (
    ConvProjector,
    FrameStackProjector,
    MLPProjector,
    PixelShuffleProjector,
    PoolProjector,
)
from models.projectors.projector import Projector, QueryRule, TokenRule
from models.projectors.queries import PerceiverResampler, QFormerProjector
from models.projectors.regions import RegionProjector, RegionRule
from models.projectors.speech import ConvGLUProjector
from models.projectors.time import TimedProjector

__all__ = [
    "AnyresProjector",
    "AnyresRule",
    "ConvGLUProjector",
    "ConvProjector",
    "FrameStackProjector",
    "MLPProjector",
    "PerceiverResampler",
    "PixelShuffleProjector",
    "PoolProjector",
    "Projector",
    "QFormerProjector",
    "QueryRule",
    "RegionProjector",
    "RegionRule",
    "TimedProjector",
    "TokenRule",
]
