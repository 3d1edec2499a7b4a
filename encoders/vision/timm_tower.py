"""Networks of timm as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
from timm.data import resolve_model_data_config
from torch import Tensor

from encoders.vision.processor import ResizeMode
from encoders.vision.tower import VisionTower, as_resample, as_size, checked_weights
from layers.pretrained import known_name


class TimmTower(VisionTower):
    """A timm network without its classifier; :class:`encoders.vision.TimmEncoder` adds a trained fusion of levels.

    Args:
        model_name: A model of timm.
        checkpoint: A local safetensors file with its weights.
        layers: Blocks or stages whose features stand side by side, counted as timm's ``forward_intermediates`` does.
        norm: Apply the network's final norm to those that come from its blocks.
        pooled: One feature per image, as before the classifier, instead of a grid.
        image_size: Side of the input in pixels, or (width, height); None takes the model's own.
        resize_mode: How images are fitted to the input.
        model_args: Further arguments of ``timm.create_model``.

    Raises:
        ValueError: If timm does not know the name (the nearest are named), or the checkpoint is no safetensors file.
    """

    def __init__(
        self,
        model_name: str,
        checkpoint: str | None = None,
        layers: Sequence[int] = (-1,),
        norm: bool = False,
        pooled: bool = False,
        image_size: int | tuple[int, int] | None = None,
        resize_mode: ResizeMode = "resize_crop",
        model_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        known_name(model_name.split(".")[0], timm.list_models(), "model_name: expected a model of timm")
        self.layers, self.norm, self.pooled = list(layers), norm, pooled
        arguments: dict[str, Any] = {"num_classes": 0, **(model_args or {})}
        if checked_weights(checkpoint) is not None:
            arguments |= {"pretrained": True, "pretrained_cfg_overlay": {"file": checkpoint}}
        size = as_size(image_size)
        if size is not None and _has_fixed_size(model_name):
            arguments["img_size"] = (size[1], size[0])
        self.tower = timm.create_model(model_name, **arguments)
        self.bases = {} if checkpoint is None else {"tower.": checkpoint}
        told = resolve_model_data_config(self.tower)
        _, height, width = told["input_size"]
        resample = as_resample(told["interpolation"])
        self._finish(size or (width, height), None, 0, told["mean"], told["std"], resize_mode, resample)

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """See :meth:`VisionTower.maps`."""
        if self.pooled:
            return [self.tower(pixels)[:, :, None, None]]
        tower: Any = self.tower
        return list(
            tower.forward_intermediates(
                pixels, indices=self.layers, norm=self.norm, output_fmt="NCHW", intermediates_only=True
            )
        )


def _has_fixed_size(model_name: str) -> bool:
    """Whether a network must be told another input size when it is built, as timm's transformers must."""
    config = timm.get_pretrained_cfg(model_name)
    return config is not None and bool(config.fixed_input_size)
