"""Region tokens: proposals of a detector beside the cells of its grid (Uni-Perceiver v2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert
from transformers import Mask2FormerConfig, Mask2FormerModel

from encoders.vision.images import ImageEncoder
from encoders.vision.processor import IMAGENET, ImageProcessor, PixelNorm, ResizeMode
from encoders.vision.pyramid import POSITION_FREQUENCIES, octaves
from encoders.vision.tower import as_size
from encoders.vision.transformers_tower import told_preprocessing
from layers.geometry import Resample
from layers.layout import ItemLayout, Layout
from layers.pretrained import load_pretrained

MASK_SIDE = 28
"""Cells per side of the pooled mask in a region's token."""
BOX_FEATURES = 4 * (1 + 2 * POSITION_FREQUENCIES)


@dataclass
class RegionProcessor:
    """An image's cells, and a fixed number of regions after them.

    Args:
        image: Makes the pixels, and the layout of the cells.
        num_regions: Features after the cells.
    """

    image: ImageProcessor
    num_regions: int
    kind: str = field(default="image", init=False)

    def layout(self, size: Sequence[int]) -> ItemLayout:
        """As :meth:`encoders.vision.ImageProcessor.layout`, with the regions."""
        return replace(self.image.layout(size), regions=self.num_regions)

    def __call__(self, raw: Any) -> tuple[dict[str, Tensor], ItemLayout]:
        """As :meth:`encoders.vision.ImageProcessor.__call__`."""
        inputs, layout = self.image(raw)
        return inputs, replace(layout, regions=self.num_regions)

    def fingerprint(self) -> Mapping[str, Any]:
        """Every field, JSON-serialisable."""
        return {"processor": type(self).__name__, **asdict(self)}


@dataclass
class Proposals:
    """What a detector proposes for B images, Q each.

    Args:
        states: (B, Q, d) what is there, ``q_sem``.
        objectness: Per layer of the decoder (B, Q, 2) logits of an object and of none; the last one counts.
        boxes: (B, Q, 4) xyxy in fractions of the input frame.
        masks: Per layer (B, Q, h, w) logits at a quarter of the input's resolution; the last one counts.
    """

    states: Tensor
    objectness: list[Tensor]
    boxes: Tensor
    masks: list[Tensor]

    def best(self, count: int) -> Tensor:
        """(B, count) queries, the likeliest objects first."""
        scores = self.objectness[-1].float().log_softmax(-1)[..., 0]
        return scores.topk(count, dim=1, sorted=True).indices


class RegionEncoder(ImageEncoder):
    """Cells of the coarse map, then tokens of the likeliest regions, ``q = q_sem + B(box) + M(mask)``.

    Uni-Perceiver v2 (https://arxiv.org/abs/2211.09808): a detector whose classes are object and nothing, here
    transformers' Mask2Former, whose queries give ``q_sem`` and the mask; a perceptron reads the box. ``B`` is a linear
    layer on sines and cosines of the corners, ``M`` one on the mask averaged to 28 x 28 cells.

    Args:
        pretrained: A local directory of a Mask2Former of transformers, with safetensors; its classes are not used.
        config: Arguments of ``Mask2FormerConfig``, for random weights instead.
        image_size: Side of the input in pixels, or (width, height).
        num_regions: Tokens of regions, at most the queries.
        level: Which of the pixel decoder's maps gives the cells: 0 is the coarsest.
        resize_mode: How images are fitted to the input.
        mean: Of the normalisation, per channel; that of the checkpoint's processor, or ImageNet's, by default.
        std: Likewise.
        resample: How images are scaled; as the checkpoint's processor does, or bilinear, by default.

    Raises:
        ValueError: If neither or both of ``pretrained`` and ``config`` are given, or there are fewer queries than
            regions.
    """

    processor: RegionProcessor

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        image_size: int | tuple[int, int] = 384,
        num_regions: int = 32,
        level: int = 0,
        resize_mode: ResizeMode = "letterbox",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        resample: Resample | None = None,
    ) -> None:
        super().__init__()
        if (pretrained is None) == (config is None):
            raise ValueError(f"expected pretrained or config, got {pretrained!r} and {config!r}")
        if pretrained is not None:
            self.detector = load_pretrained(Mask2FormerModel, pretrained)
            self.bases = {"detector.": pretrained}
        else:
            assert config is not None
            self.detector = Mask2FormerModel(Mask2FormerConfig(**config))
        own = self.detector.config
        if not 1 <= num_regions <= own.num_queries:
            raise ValueError(f"num_regions: expected 1 to {own.num_queries}, the detector's queries, got {num_regions}")
        self.hidden_size, self.level = own.hidden_dim, level
        width = self.hidden_size
        self.objectness = nn.Linear(width, 2)
        self.box = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )
        self.box_embedding = nn.Linear(BOX_FEATURES, width)
        self.mask_embedding = nn.Linear(MASK_SIDE**2, width)
        self.cell_projection = nn.Linear(own.feature_size, width)
        self.cell_norm, self.region_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        told = {} if pretrained is None else told_preprocessing(pretrained)
        mean, std = mean or told.get("mean", IMAGENET[0]), std or told.get("std", IMAGENET[1])
        resample = resample or told.get("resample", "bilinear")
        self.normalise = PixelNorm(mean, std)
        size = as_size(image_size)
        self.processor = RegionProcessor(
            ImageProcessor(size, self._grid(size), resize_mode, tuple(mean), resample), num_regions
        )

    def forward(self, inputs: Mapping[str, Tensor], layout: Layout) -> Tensor:
        """Encode to (ΣN, d): of every image its cells, row by row, then its regions, the likeliest objects first."""
        cells, proposals = self.propose(inputs)
        features = torch.cat([cells, self.region_tokens(proposals)], dim=1).flatten(0, 1)
        assert features.shape[0] == layout.total, "the layout does not describe these images"
        return features

    def propose(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Proposals]:
        """The cells (B, N, d), and everything that the detector proposes."""
        pixels = self.normalise(inputs["pixel_values"]).to(self.objectness.weight.dtype)
        output = self.detector(pixel_values=pixels, output_hidden_states=True)
        cells = self.cell_norm(self.cell_projection(output.pixel_decoder_hidden_states[self.level].flatten(2).mT))
        layers = [states.transpose(0, 1) for states in output.transformer_decoder_intermediate_states]
        centres = self.box(layers[-1]).float().sigmoid()
        proposals = Proposals(
            states=layers[-1],
            objectness=[self.objectness(states) for states in layers],
            boxes=box_convert(centres, "cxcywh", "xyxy"),
            masks=list(output.masks_queries_logits),
        )
        return cells, proposals

    def region_tokens(self, proposals: Proposals) -> Tensor:
        """(B, R, d) tokens of the likeliest regions."""
        best = proposals.best(self.processor.num_regions)
        rows = torch.arange(len(best), device=best.device)[:, None]
        states, boxes, masks = (
            proposals.states[rows, best],
            proposals.boxes[rows, best],
            proposals.masks[-1][rows, best],
        )
        pooled = F.adaptive_avg_pool2d(masks.float().sigmoid(), MASK_SIDE).flatten(2)
        embedded = self.box_embedding(box_features(boxes).to(states.dtype)) + self.mask_embedding(
            pooled.to(states.dtype)
        )
        tokens: Tensor = self.region_norm(states + embedded)
        return tokens

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of the cells, by the strides of the detector's backbone."""
        stride = list(self.detector.config.feature_strides)[::-1][self.level]
        return -(-size[1] // stride), -(-size[0] // stride)


def box_features(boxes: Tensor) -> Tensor:
    """(..., 4) coordinates in [0, 1], and sines and cosines of their octaves: (..., 36)."""
    return torch.cat([boxes, octaves(2 * boxes - 1)], dim=-1)
