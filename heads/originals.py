"""What an expert with an image encoder of its own sees: the original image, brought to the expert's frame."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from heads.links import checked_boxes
from layers.calls import HeadContext
from layers.geometry import GeometricTransform

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Fit = Literal["longest_side", "stretch"]


def original_image(context: HeadContext) -> Tensor:
    """The call's image (3, H, W) uint8 before the encoder's processor.

    Raises:
        ValueError: If there is no image, or only what the encoder's processor left of it.
    """
    image = context.image
    if image.load_original is None:
        raise ValueError(f"task '{context.call.task}': its head reads the original image, which is not at hand")
    original: Tensor = torch.as_tensor(image.load_original())
    width, height = image.layout.original_size
    if original.dtype != torch.uint8 or original.shape != (3, height, width):
        given = f"{original.dtype} {tuple(original.shape)}"
        raise ValueError(f"task '{context.call.task}': expected an image of uint8 (3, {height}, {width}), got {given}")
    return original


def original_regions(context: HeadContext) -> Tensor:
    """(R, 4) the call's regions in original pixels, xyxy.

    Raises:
        ValueError: If one is no box within the image.
    """
    transform = context.image.layout.transform
    assert transform is not None, "an image's layout has a transform"
    boxes = torch.tensor(checked_boxes(context), dtype=torch.float64).reshape(-1, 4)
    return transform.invert_boxes(boxes * boxes.new_tensor([*transform.input_size] * 2))


@dataclass(frozen=True)
class ExpertFrame:
    """How an expert wants its images; picklable, for data workers.

    Args:
        size: (width, height) of its input.
        fit: ``longest_side`` scales that and pads at the right and below; ``stretch`` ignores the aspect ratio.
        mean: Of the normalisation, per channel.
        std: Likewise.
    """

    size: tuple[int, int]
    fit: Fit
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]

    @classmethod
    def of(cls, pretrained: str | None, size: tuple[int, int], fit: Fit) -> ExpertFrame:
        """The frame of a directory, with the normalisation that its image processor tells, or ImageNet's."""
        told: dict[str, Any] = {}
        for name in ("preprocessor_config.json", "processor_config.json") if pretrained is not None else ():
            file = Path(str(pretrained), name)
            if file.is_file():
                value = json.loads(file.read_text())
                told |= value.get("image_processor", value)
        mean, std = told.get("image_mean", IMAGENET[0]), told.get("image_std", IMAGENET[1])
        return cls(size, fit, tuple(mean), tuple(std))

    def transform(self, original_size: tuple[int, ...]) -> GeometricTransform:
        """From the pixels of an image of this (width, height) to the expert's input."""
        width, height = original_size
        if self.fit == "longest_side":
            return GeometricTransform.longest_side((width, height), self.size[0])
        return GeometricTransform.resize((width, height), self.size)

    def pixels(self, original: Tensor) -> Tensor:
        """(3, H, W) normalised pixels of the expert's input; padding is zero."""
        transform = self.transform((original.shape[2], original.shape[1]))
        scaled = transform.apply_image(original).float() / 255
        mean, std = scaled.new_tensor(self.mean)[:, None, None], scaled.new_tensor(self.std)[:, None, None]
        canvas = torch.zeros_like(scaled)
        transform.window_of(canvas).copy_(transform.window_of((scaled - mean) / std))
        return canvas


class EmbeddingCache(nn.Module):
    """What an expert's frozen image encoder made of the latest images; never part of a checkpoint.

    A module without parameters, so that it hears when its head moves or is given other weights, and forgets.

    Args:
        max_images: Images that are remembered.
    """

    def __init__(self, max_images: int) -> None:
        super().__init__()
        if max_images < 1:
            raise ValueError(f"max_images: expected at least 1, got {max_images}")
        self.max_images = max_images
        self.misses = 0
        self._kept: OrderedDict[str, list[Tensor]] = OrderedDict()

    def get(
        self, originals: Sequence[Tensor], embed: Callable[[list[Tensor]], list[list[Tensor]]]
    ) -> list[list[Tensor]]:
        """The feature maps of each image, of equal images once.

        Args:
            originals: (3, H, W) uint8 each.
            embed: Makes them for the images that are not remembered.
        """
        keys = [self._key(original) for original in originals]
        missing = {key: original for key, original in zip(keys, originals, strict=True) if key not in self._kept}
        made: dict[str, list[Tensor]] = {}
        if missing:
            with torch.inference_mode(False), torch.no_grad():  # what a session has seen, training may meet again
                made = dict(zip(missing, embed(list(missing.values())), strict=True))
        self.misses += len(missing)
        found = [made.get(key) or self._kept[key] for key in keys]
        for key, maps in zip(keys, found, strict=True):
            self._kept[key] = maps
            self._kept.move_to_end(key)
        while len(self._kept) > self.max_images:
            self._kept.popitem(last=False)
        return found

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._kept.clear()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept.clear()
        super()._load_from_state_dict(*args, **kwargs)

    @staticmethod
    def _key(original: Tensor) -> str:
        data = original.cpu().contiguous().numpy()
        return f"{data.shape}-{hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest()}"
