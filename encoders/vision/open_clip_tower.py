"""Vision towers of open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from encoders.vision.processor import ResizeMode
from encoders.vision.tower import VisionTower, as_resample, as_size, checked_weights
from layers.pretrained import known_name


class OpenClipEncoder(VisionTower):
    """The image side of an open_clip model; its text side is not kept.

    Args:
        model_name: A configuration of open_clip, such as "ViT-B-16".
        checkpoint: A local safetensors file of the whole model.
        layers: Blocks whose features stand side by side, counted as open_clip's ``forward_intermediates`` does (-1 the
            last, without the final norm).
        pooled: One feature per image, as in ``encode_image``, instead of a grid.
        image_size: Side of the input in pixels, or (width, height); None takes the model's own.
        resize_mode: How images are fitted to the input.

    Raises:
        ValueError: If open_clip does not know the name (the nearest are named), or the checkpoint is no safetensors
            file.
    """

    def __init__(
        self,
        model_name: str,
        checkpoint: str | None = None,
        layers: Sequence[int] = (-1,),
        pooled: bool = False,
        image_size: int | tuple[int, int] | None = None,
        resize_mode: ResizeMode = "resize_crop",
    ) -> None:
        import open_clip  # a second, which nobody else should wait for

        super().__init__()
        known_name(model_name, open_clip.list_models(), "model_name: expected a model of open_clip")
        self.layers, self.pooled = list(layers), pooled
        size = as_size(image_size)
        forced: dict[str, Any] = {} if size is None else {"force_image_size": (size[1], size[0])}
        model: Any = open_clip.create_model(
            model_name, pretrained=checked_weights(checkpoint), weights_only=True, **forced
        )
        self.tower = model.visual
        self.bases = {} if checkpoint is None else {"tower.": checkpoint}
        told = self.tower.preprocess_cfg
        height, width = [told["size"]] * 2 if isinstance(told["size"], int) else told["size"]
        resample = as_resample(told["interpolation"])
        self._finish((width, height), None, 0, told["mean"], told["std"], resize_mode, resample)

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """See :meth:`VisionTower.maps`."""
        if self.pooled:
            features = self.tower(pixels)
            return [(features[0] if isinstance(features, tuple) else features)[:, :, None, None]]
        output = self.tower.forward_intermediates(
            pixels, indices=self.layers, intermediates_only=True, output_fmt="NCHW"
        )
        return list(output["image_intermediates"])
