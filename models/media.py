"""Media on their way from the encoders to the language model and the heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from layers.batch import MediaBatch
from layers.calls import MediaFeatures
from layers.layout import ItemLayout, Layout
from models.projectors import Projector


@dataclass
class EncodedMedia:
    """The items of one modality after encoder and projector.

    Args:
        features: (ΣN, d) encoder features, which heads read.
        layout: Their layout.
        projected: (ΣN', d_llm) tokens of the items that the language model reads.
        projected_layout: Their layout.
    """

    features: Tensor
    layout: Layout
    projected: Tensor
    projected_layout: Layout


def project(kind: str, projector: Projector, features: Tensor, batch: MediaBatch) -> EncodedMedia:
    """Bring features to the language model; of items that take no position in it, they go to heads alone.

    Args:
        kind: The modality.
        projector: Its projector.
        features: (ΣN, d) of all items.
        batch: The items.

    Raises:
        ValueError: If the projector gives an item another number of tokens than the batch reserved for it.
    """
    projected, layout = projector(features, batch.layout)
    if not all(batch.token_lengths):
        pieces, read = layout.split(projected), [place for place, length in enumerate(batch.token_lengths) if length]
        projected = torch.cat([projected[:0], *(pieces[place] for place in read)])
        layout = Layout([layout.items[place] for place in read])
    expected = [length for length in batch.token_lengths if length]
    if list(layout.lengths) != expected:
        raise ValueError(f"{kind} projector: expected {expected} tokens per item, got {list(layout.lengths)}")
    return EncodedMedia(features, batch.layout, projected, layout)


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
