"""Vision towers of transformers: CLIP, SigLIP, DINOv2, DINOv3, ViT, Swin and what else fits their interface."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from encoders.vision.processor import IMAGENET, ResizeMode
from encoders.vision.tower import VisionTower, as_size, tokens_to_map
from layers.geometry import Resample
from layers.pretrained import architecture, load_pretrained

_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_NORMS = {"clip": _CLIP, "siglip": _HALF, "vit": _HALF}
_RESAMPLES: dict[int, Resample] = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, in preprocessor_config.json
_POOLING = r"(^|\.)(pooler|head)\."
"""What a checkpoint that was trained with another head may lack, where nothing is pooled."""


class TransformersEncoder(VisionTower):
    """A vision tower of transformers, or the vision part of one that has others too.

    Args:
        pretrained: A local directory or hub id with safetensors.
        model_type: Architecture without weights, such as "dinov2", with ``config``, instead of ``pretrained``.
        config: Arguments of the architecture's configuration; over those of ``pretrained``.
        layers: Indices into transformers' ``hidden_states``, side by side: 0 is the embedding, -1 the last block
            without the final norm, -2 what LLaVA reads. None is ``last_hidden_state``.
        pooled: One feature per image, the tower's own ``pooler_output``, instead of a grid.
        image_size: Side of the input in pixels, or (width, height), positions interpolated where it is not the tower's
            own; "native" keeps every image's size; None takes the tower's.
        max_patches: The most patches of an image of its own size.
        tiles: Arrangements (rows, columns) of tiles that show an image larger, beside the whole image.
        tiles_alone_only: Not where a conversation shows several images: these are padded to squares.
        resize_mode: How images are fitted to the input, where they are not cut into tiles.
        mean: Of the normalisation, per channel; that of the checkpoint's processor or of its family by default.
        std: Likewise.
        resample: How images are scaled, likewise.
        revision: Revision on the hub.

    Raises:
        ValueError: If neither or both of ``pretrained`` and ``model_type`` are given, the architecture has no vision
            tower, or a layer is not there.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        model_type: str | None = None,
        config: dict[str, Any] | None = None,
        layers: Sequence[int] | None = None,
        pooled: bool = False,
        image_size: int | tuple[int, int] | str | None = None,
        max_patches: int = 1024,
        tiles: Sequence[Sequence[int]] | None = None,
        tiles_alone_only: bool = False,
        resize_mode: ResizeMode = "resize_crop",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        resample: Resample | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        if (pretrained is None) == (model_type is None):
            raise ValueError(f"expected pretrained or model_type, got {pretrained!r} and {model_type!r}")
        native = image_size == "native"
        if isinstance(image_size, str) and not native:
            raise ValueError(f"image_size: expected a number of pixels, two, 'native' or None, got {image_size!r}")
        self.layers, self.pooled = list(layers) if layers is not None else None, pooled
        if pretrained is not None:
            self.tower = _load(pretrained, revision, config, None if pooled else _POOLING)
        else:
            self.tower = _build(model_type, config)
        self.bases = {} if pretrained is None else {"tower.": pretrained}
        own: Any = self.tower.config
        self._check_layers(own)
        self._interpolates = "interpolate_pos_encoding" in inspect.signature(self.tower.forward).parameters
        self._patch = getattr(own, "patch_size", None) if not hasattr(own, "depths") else None
        own_mean, own_std, own_resample = _preprocessing(pretrained, own.model_type)
        size = as_size(own.image_size if image_size is None or isinstance(image_size, str) else image_size)
        norm = (mean or own_mean, std or own_std)
        chosen = resample or own_resample
        self._finish(
            None if native else size, self._patch, max_patches, *norm, resize_mode, chosen, tiles, tiles_alone_only
        )

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """See :meth:`VisionTower.maps`."""
        arguments: dict[str, Any] = {"interpolate_pos_encoding": True} if self._interpolates else {}
        output = self.tower(pixel_values=pixels, output_hidden_states=True, **arguments)
        if self.pooled:
            return [output.pooler_output[:, :, None, None]]
        reshaped = getattr(output, "reshaped_hidden_states", None)
        if reshaped is not None:  # windowed towers: every stage has a grid of its own
            if self.layers is not None:
                return [reshaped[index] for index in self.layers]
            rows, columns = reshaped[-1].shape[-2:]
            return [tokens_to_map(output.last_hidden_state, rows, columns)]
        chosen = [output.last_hidden_state]
        if self.layers is not None:
            chosen = [output.hidden_states[index] for index in self.layers]
        if chosen[0].ndim == 4:
            return chosen
        assert self._patch is not None
        rows, columns = pixels.shape[-2] // self._patch, pixels.shape[-1] // self._patch
        return [tokens_to_map(tokens, rows, columns) for tokens in chosen]

    def _check_layers(self, config: PretrainedConfig) -> None:
        count: int = len(config.depths) if hasattr(config, "depths") else config.num_hidden_layers
        wrong = [index for index in self.layers or () if not -count - 1 <= index <= count]
        if wrong:
            raise ValueError(
                f"layers: expected indices from {-count - 1} to {count} of '{config.model_type}', got {wrong}"
            )


def _build(model_type: str | None, config: dict[str, Any] | None) -> nn.Module:
    own = architecture(str(model_type), config or {})
    return AutoModel.from_config(_vision_part(own), trust_remote_code=False)


def _load(pretrained: str, revision: str | None, config: dict[str, Any] | None, may_lack: str | None) -> nn.Module:
    own = AutoConfig.from_pretrained(pretrained, revision=revision, trust_remote_code=False)
    part = _vision_part(own)
    for name, value in (config or {}).items():
        if not hasattr(part, name):
            raise ValueError(f"config: expected settings of '{part.model_type}', got '{name}'")
        setattr(part, name, value)
    tower: nn.Module = load_pretrained(AutoModel, pretrained, part, may_lack, revision=revision)
    return tower


def _vision_part(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of the tower itself, also of a model that has others beside it."""
    part = getattr(config, "vision_config", config)
    if not hasattr(part, "num_channels"):
        raise ValueError(f"expected an architecture with a vision tower, got '{config.model_type}'")
    return part


def told_preprocessing(directory: str) -> dict[str, Any]:
    """``mean``, ``std`` and ``resample`` of a directory's image processor, so far as it says them."""
    told: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = Path(directory, name)
        if file.is_file():
            value = json.loads(file.read_text())
            told |= value.get("image_processor", value)
    norm = {ours: told[theirs] for ours, theirs in (("mean", "image_mean"), ("std", "image_std")) if theirs in told}
    return norm | ({"resample": _RESAMPLES.get(told["resample"], "bicubic")} if "resample" in told else {})


def _preprocessing(pretrained: str | None, model_type: str) -> tuple[Sequence[float], Sequence[float], Resample]:
    """Mean, deviation and resampling that a checkpoint asks for; those of its family where it says nothing."""
    mean, std = next((norm for name, norm in _NORMS.items() if model_type.startswith(name)), IMAGENET)
    told = told_preprocessing(pretrained) if pretrained is not None else {}
    return told.get("mean", mean), told.get("std", std), told.get("resample", "bicubic")
