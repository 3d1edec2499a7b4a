"""Masks: from a pixel decoder of our own, from SAM and SAM 2, or a set of them from Mask2Former."""

from heads.masks.mask2former import Mask2FormerHead
from heads.masks.pixels import MaskHead
from heads.masks.sam import SamMaskHead
from heads.masks.targets import MaskTargetProcessor

__all__ = ["Mask2FormerHead", "MaskHead", "MaskTargetProcessor", "SamMaskHead"]
