"""Media on their way from the encoders to the language model and the heads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from layers.calls import MediaFeatures
from layers.layout import ItemLayout, Layout


@dataclass
class EncodedMedia:
    """The items of one modality after encoder and projector.

    Args:
        features: (ΣN, d) encoder features, which heads read.
        layout: Their layout.
        projected: (ΣN', d_llm) tokens, which the language model reads.
        projected_layout: Their layout.
    """

    features: Tensor
    layout: Layout
    projected: Tensor
    projected_layout: Layout


def seen_by_heads(
    kind: str, layout: ItemLayout, inputs: dict[str, Tensor], features: Tensor, original: Tensor | None = None
) -> MediaFeatures:
    """What heads get of an item: of an image in tiles or with regions, the cells of the whole image alone.

    Args:
        kind: Its modality.
        layout: Of its features.
        inputs: Of its encoder.
        features: (N, d).
        original: The image before the encoder's processor, where the batch carries it.
    """
    if layout.num_views > 1:
        inputs = {**inputs, "pixel_values": inputs["pixel_values"][0]}
    load = None if original is None else lambda: original
    return MediaFeatures(kind, features[: layout.whole.num_features], layout.whole, inputs, load)
