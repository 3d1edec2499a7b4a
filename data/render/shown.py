"""Media as a prompt shows them: which encoder takes them, their inputs, and the layouts of what it will give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from data.media import RawMedia, Video, resample, resampled_length
from data.records import Media
from layers.encoder import Processor
from layers.layout import ItemLayout
from layers.media import Audio, Graph
from models.plan import BatchPlan

Layouts = tuple[str, list[ItemLayout]]
"""A medium's kind, and the encoder's output for it or for each of its frames."""
Still = Tensor | Audio | Graph
_LAYOUTS: dict[ItemLayout, ItemLayout] = {}
_MOST_LAYOUTS = 10_000


def processor_among(plan: BatchPlan, kind: str, counts: Mapping[str, int]) -> Processor:
    """The processor of a modality, for an item among so many of each.

    Raises:
        ValueError: If the model does not take this modality.
    """
    if kind not in plan.processors:
        raise ValueError(f"{kind}: expected media that the model takes, one of {sorted(plan.processors)}")
    processor: Any = plan.processors[kind]
    return processor.among(counts[kind]) if hasattr(processor, "among") else processor


def taken_by(kind: str) -> str:
    """The modality whose encoder reads a kind of media: the frames of a video are images."""
    return "image" if kind == "video" else kind


def shown(raw: RawMedia, plan: BatchPlan) -> tuple[str, list[tuple[Still, float | None]]]:
    """A medium's kind, and what of it is shown, with the seconds at which a frame stands."""
    if isinstance(raw, Video):
        return "video", list(zip(*raw.sample(plan.max_frames), strict=True))
    kind = "audio" if isinstance(raw, Audio) else "graph" if isinstance(raw, Graph) else "image"
    return kind, [(raw, None)]


def process(name: str, raw: Still, seconds: float | None, processor: Processor) -> tuple[dict[str, Tensor], ItemLayout]:
    """A still's encoder inputs and layout.

    Raises:
        ValueError: If the processor refuses it, naming the medium.
    """
    if isinstance(raw, Audio):
        raw = resample(raw, _sample_rate(processor))
        size: tuple[int, ...] = (raw.waveform.shape[0],)
    elif isinstance(raw, Graph):
        size = (raw.num_nodes,)
    else:
        if raw.dtype != torch.uint8 or raw.ndim != 3 or raw.shape[0] != 3 or 0 in raw.shape:
            raise ValueError(f"image '{name}': expected uint8 (3, H, W), got {raw.dtype} {tuple(raw.shape)}")
        size = (raw.shape[2], raw.shape[1])
    try:
        inputs, layout = processor(raw)
    except ValueError as error:
        raise ValueError(f"media '{name}': {error}") from error
    predicted = processor.layout(size)
    assert layout == predicted, f"media '{name}': the processor predicts {predicted} and gives {layout}"
    layout = _shared(layout)
    return inputs, layout if seconds is None else replace(layout, seconds=seconds)


def _shared(layout: ItemLayout) -> ItemLayout:
    """The one object for equal layouts: on its way out of a worker it is then written once per pack."""
    if len(_LAYOUTS) >= _MOST_LAYOUTS:
        _LAYOUTS.clear()
    return _LAYOUTS.setdefault(layout, layout)


def declared_uses(media: Media, plan: BatchPlan) -> int:
    """How many items of its modality a medium stands for."""
    return min(media.size[2], plan.max_frames) if media.type == "video" else 1


def declared_layouts(media: Media, plan: BatchPlan, counts: Mapping[str, int]) -> Layouts:
    """A medium's layouts, from the size that its record declares."""
    processor = processor_among(plan, taken_by(media.type), counts)
    if media.type == "video":
        return media.type, [processor.layout(media.size[:2])] * declared_uses(media, plan)
    if media.type != "audio":
        return media.type, [processor.layout(media.size)]
    if media.sample_rate is None:
        raise ValueError(f"'{media.file}': expected the sample rate of its {media.size[0]} samples, got none")
    samples = resampled_length(media.size[0], media.sample_rate, _sample_rate(processor))
    return media.type, [processor.layout((samples,))]


def _sample_rate(processor: Processor) -> int:
    rate = getattr(processor, "sample_rate", None)
    if not isinstance(rate, int):
        raise ValueError(f"audio processor {type(processor).__name__}: expected an integer sample_rate, got {rate!r}")
    return rate
