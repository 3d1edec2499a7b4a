"""A packed batch and the step that delivers several of them with their loss counts."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from layers.calls import Call, Result
from layers.head import HeadTarget
from layers.layout import Layout


def _move(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: _move(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [_move(item, device) for item in value]
    if isinstance(value, Result):
        return replace(value, **{item.name: _move(getattr(value, item.name), device) for item in fields(value)})
    return value


PADDING = ""
"""Key of a segment that only fills a pack."""


@dataclass
class MediaBatch:
    """All items of one modality in a pack, in segment order.

    Args:
        items: Processed inputs, one dictionary per item (the encoder collates them).
        layout: The encoder's output per item.
        token_lengths: Positions that each item takes in the language model, after the projector; 0 for what an earlier
            call of the turn made, which heads alone see.
        segments: (M,) the segment that owns each item.
        positions: (ΣN',) positions of the items' placeholders in ``input_ids``, in item order.
        contents: A hash per item of what the encoder is given, where features of a frozen encoder are kept.
        features: (N, d) per item what the encoder gave before, or None; where all are there, it is not run.
        originals: Images (3, H, W) uint8 as they were before the processor, one per item, for heads that look at them;
            empty where none does.
    """

    items: list[dict[str, Tensor]]
    layout: Layout
    token_lengths: list[int]
    segments: Tensor
    positions: Tensor
    contents: list[str] = field(default_factory=list)
    features: list[Tensor | None] = field(default_factory=list)
    originals: list[Tensor] = field(default_factory=list)

    def original(self, index: int) -> Tensor | None:
        """An item's original, where the batch carries them."""
        return self.originals[index] if self.originals else None

    def to(self, device: torch.device | str) -> MediaBatch:
        """The same batch on a device."""
        return replace(
            self,
            items=_move(self.items, device),
            features=_move(self.features, device),
            segments=_move(self.segments, device),
            positions=_move(self.positions, device),
            originals=_move(self.originals, device),
        )


@dataclass
class HeadCall:
    """A call in a pack together with what its head learns from.

    Args:
        call: Its ``state_positions`` index the pack; its regions are normalised to the input frame, 0 to 1.
        segment: The segment that it belongs to.
        media: (kind, index into that kind's :class:`MediaBatch`) of the media before it, in order, then of those that
            earlier calls made and it refers to.
        target: Tensors of the head's target processor; empty where there is nothing to learn.
        earlier_results: Per earlier call of the turn its result by the targets, if this call refers to it, else None.
    """

    call: Call
    segment: int
    media: list[tuple[str, int]]
    target: HeadTarget
    earlier_results: list[Result | None] = field(default_factory=list)


@dataclass
class Batch:
    """One pack: B segments in one row of T tokens; attention never crosses a segment.

    Args:
        input_ids: (1, T).
        labels: (1, T), -100 where nothing is learned. ``labels[t]`` is the token *at* t (shifted inside the loss).
        position_ids: (1, T), restarting at 0 per segment.
        segment_lengths: Lengths of the segments, in order; they sum to T.
        media: Modality -> its items.
        calls: Head name -> calls in segment order.
        keys: Sample key per segment; :data:`PADDING` for one that only fills the pack.
        counts: Loss name -> what this pack adds to that loss's denominator ("token" and the heads' names).
        instructions: Per segment the ids of its instruction alone, for a model with a prompt gate; empty otherwise.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    segment_lengths: list[int]
    media: dict[str, MediaBatch] = field(default_factory=dict)
    calls: dict[str, list[HeadCall]] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    instructions: list[Tensor] = field(default_factory=list)

    @property
    def sample_lengths(self) -> list[int]:
        """Tokens per sample, without a segment of padding."""
        if not self.keys:
            return self.segment_lengths
        return [length for length, key in zip(self.segment_lengths, self.keys, strict=True) if key != PADDING]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return replace(
            self,
            input_ids=_move(self.input_ids, device),
            labels=_move(self.labels, device),
            position_ids=_move(self.position_ids, device),
            instructions=_move(self.instructions, device),
            media={kind: media.to(device) for kind, media in self.media.items()},
            calls={
                head: [
                    replace(
                        item,
                        target=_move(item.target, device),
                        earlier_results=_move(item.earlier_results, device),
                    )
                    for item in calls
                ]
                for head, calls in self.calls.items()
            },
        )


@dataclass
class Step:
    """The packs of one optimizer step, with the denominators of every loss known before the first backward.

    Args:
        packs: The packs.
        counts: Loss name -> the denominator over all of them.
        quarantined: Samples that were left out of them.
        source: In an unmixed stream, the one source that they come from.
        probability: That of this source being drawn.
    """

    packs: list[Batch]
    counts: dict[str, int]
    quarantined: int = 0
    source: str | None = None
    probability: float | None = None

    def to(self, device: torch.device | str) -> Step:
        """The same step on a device."""
        return replace(self, packs=[pack.to(device) for pack in self.packs])
