"""Boxes: one from a state, a set by Hungarian matching, or those of a frozen detector."""

from heads.boxes.detector import DetectorHead
from heads.boxes.sets import BoxSetHead
from heads.boxes.single import BoxHead, BoxPredictions
from heads.boxes.targets import BoxSetTargetProcessor, BoxTargetProcessor

__all__ = [
    "BoxHead",
    "BoxPredictions",
    "BoxSetHead",
    "BoxSetTargetProcessor",
    "BoxTargetProcessor",
    "DetectorHead",
]
