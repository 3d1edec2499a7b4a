"""Masks between the frames: targets to the frame of a head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heads.originals import ExpertFrame
from heads.phrases import class_index, phrases_of
from layers.calls import Call
from layers.head import HeadTarget
from layers.layout import ItemLayout


class MaskTargetProcessor:
    """Maps a boolean mask from the original frame to the input frame."""

    def __call__(self, value: Any, media: Sequence[ItemLayout]) -> HeadTarget:
        """Process a mask.

        Args:
            value: (H, W) boolean tensor of the image's original size.
            media: Layouts of the conversation's images; the last one is the mask's image.

        Returns:
            ``mask`` (input height, input width), boolean.

        Raises:
            ValueError: If there is no image, or the mask has another size than it.
        """
        mask = checked_mask(value, media)
        transform = media[-1].transform
        assert transform is not None, "an image's layout has a transform"
        return {"mask": transform.apply_mask(mask)}


def checked_mask(value: Any, media: Sequence[ItemLayout]) -> Tensor:
    """A mask (H, W), boolean, of the original size of the conversation's latest image.

    Raises:
        ValueError: If there is no image, or the mask has another size than it.
    """
    if not media:
        raise ValueError("a mask target needs an image before the call, the conversation has none")
    mask = torch.as_tensor(value)
    width, height = media[-1].original_size
    if mask.shape != (height, width):
        got = "x".join(str(size) for size in reversed(mask.shape))
        raise ValueError(f"expected a mask of {width}x{height} pixels like its image, got {got}")
    return mask.bool()


@dataclass(frozen=True)
class ExpertMaskProcessor:
    """Maps masks from the original frame to what an expert predicts: its own frame at a coarser resolution.

    Args:
        frame: The expert's.
        mask_size: (width, height) of the masks that it predicts over its frame.
        classes: The classes of a set of masks; None takes the phrases of the call's prompt, see :meth:`for_call`.
    """

    frame: ExpertFrame
    mask_size: tuple[int, int]
    classes: tuple[str, ...] | None = None

    def for_call(self, call: Call) -> ExpertMaskProcessor:
        """The processor of one call's targets."""
        classes = self.classes if self.classes is not None else tuple(phrases_of(call.prompt))
        return replace(self, classes=classes)

    def __call__(self, value: Any, media: Sequence[ItemLayout]) -> HeadTarget:
        """Process a mask, or several.

        Args:
            value: (H, W) boolean tensor of the image's original size, which belongs to the only class; or a list of
                ``{"mask": such a tensor, "label": a class}``.
            media: Layouts of the conversation's images; the last one is the masks' image.

        Returns:
            ``masks`` (K, h, w), the share of each cell that is covered; ``window`` (h, w), the share of it that shows
            the image; ``labels`` (K,).

        Raises:
            ValueError: If there is no image, a mask has another size than it, or a label is no class.
        """
        items = value if isinstance(value, list) else [{"mask": value}]
        checked = [checked_mask(item["mask"], media) for item in items]
        if not media:
            raise ValueError("a mask target needs an image before the call, the conversation has none")
        labels = [class_index(item.get("label", ""), self.classes or ("",), "mask label") for item in items]
        width, height = media[-1].original_size
        transform = self.frame.transform((width, height))
        shown = transform.apply_image(torch.ones(1, height, width))
        masks = [transform.apply_image(mask[None].float()) for mask in checked]
        coarse = F.adaptive_avg_pool2d(torch.cat([shown, *masks]), self.mask_size[::-1])
        return {
            "masks": coarse[1:],
            "window": coarse[0],
            "labels": torch.tensor(labels, dtype=torch.int64),
        }
