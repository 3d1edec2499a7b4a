"""Task calls, their grounding, and the typed results of expert heads: values that cross rooms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from layers.geometry import Box
from layers.layout import ItemLayout


@dataclass(frozen=True)
class Region:
    """A box on an image, xyxy.

    Inside the model (grammar, batches, head contexts) it is normalised to the input frame, 0 to 1; in a session's
    replies it is in original pixels.

    Args:
        box_xyxy: The box.
        canvas: In original units, where the conversation has no image: (width, height) of the empty canvas that the box
            is on; a reply's are fractions of a canvas of (1, 1). None on the latest image.
    """

    box_xyxy: Box
    canvas: tuple[float, float] | None = None


@dataclass(frozen=True)
class TimeSpan:
    """A stretch of audio or video: fractions of the clip inside the model, seconds in a session's replies."""

    start: float
    end: float


@dataclass(frozen=True)
class NodeRef:
    """A node, by index into its graph."""

    index: int


@dataclass(frozen=True)
class ResultRef:
    """The result of an earlier call of the same reply, counted from 0."""

    call_index: int


Grounding = Region | TimeSpan | NodeRef | ResultRef


@dataclass(frozen=True)
class Call:
    """One task call of a reply.

    Args:
        task: Name of the task in the task table.
        prompt: The text between the opening token and the grounding.
        groundings: In the order written. Regions of a call that a session returns are original pixels.
        token_span: (start, end) of the call in the token ids it was parsed from, closing token included.
        state_positions: Positions that the head reads: the prompt's tokens where the task says so, then the anchor or
            the k queries.
    """

    task: str
    prompt: str
    groundings: tuple[Grounding, ...] = ()
    token_span: tuple[int, int] = (0, 0)
    state_positions: tuple[int, ...] = ()

    @property
    def boxes_xyxy(self) -> tuple[Box, ...]:
        """The regions' boxes, in order."""
        return tuple(g.box_xyxy for g in self.groundings if isinstance(g, Region))

    def shifted(self, offset: int) -> Call:
        """The same call with its token positions moved by ``offset``."""
        start, end = self.token_span
        moved = tuple(position + offset for position in self.state_positions)
        return replace(self, token_span=(start + offset, end + offset), state_positions=moved)


@dataclass(frozen=True)
class Result:
    """What an expert head answers, in original units.

    Args:
        call: What it answers.
        notes: What its reader should know, such as the end of a prompt that a text encoder did not read.
    """

    call: Call
    notes: tuple[str, ...] = field(default=(), kw_only=True)


def _check_listed(count: int, scores: tuple[float, ...], labels: tuple[str, ...]) -> None:
    """One score, and one label, for each of ``count`` things, or none at all."""
    if len(scores) not in (0, count) or len(labels) not in (0, count):
        told = f"{len(scores)} scores and {len(labels)} labels"
        raise ValueError(f"expected a score and a label for each of {count}, or none, got {told}")


@dataclass(frozen=True)
class BoxesResult(Result):
    """Boxes in original pixels, xyxy, best first.

    Args:
        boxes_xyxy: None or more.
        scores: One per box.
        labels: What each box shows, such as a phrase of the prompt; empty where there is but one thing asked for.
    """

    boxes_xyxy: tuple[Box, ...] = ()
    scores: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_listed(len(self.boxes_xyxy), self.scores, self.labels)


@dataclass(frozen=True)
class MaskResult(Result):
    """A boolean mask (H, W) of the original raster.

    Args:
        mask: The pixels.
        score: How well the head thinks that it fits, 0 to 1, where it says so.
    """

    mask: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool))
    score: float | None = None


@dataclass(frozen=True)
class MasksResult(Result):
    """Instances: boolean masks (K, H, W) of the original raster, best first; they may overlap.

    Args:
        masks: None or more.
        scores: One per mask.
        labels: What each mask shows; empty where there is but one thing asked for.
    """

    masks: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0, dtype=torch.bool))
    scores: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_listed(len(self.masks), self.scores, self.labels)


@dataclass(frozen=True)
class ImageResult(Result):
    """An image (3, H, W), uint8 RGB."""

    image: Tensor = field(default_factory=lambda: torch.zeros(3, 0, 0, dtype=torch.uint8))


@dataclass(frozen=True)
class AudioResult(Result):
    """A waveform (channels, samples), float in [-1, 1], and its sample rate in hertz."""

    waveform: Tensor = field(default_factory=lambda: torch.zeros(1, 0))
    sample_rate: int = 16000


@dataclass(frozen=True)
class VideoResult(Result):
    """Frames (frames, 3, H, W), uint8 RGB, shown so many a second."""

    frames: Tensor = field(default_factory=lambda: torch.zeros(0, 3, 0, 0, dtype=torch.uint8))
    fps: float = 8.0


@dataclass(frozen=True)
class LabelResult(Result):
    """A class and the probability of each class."""

    label: str = ""
    probabilities: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreResult(Result):
    """A probability in [0, 1]."""

    score: float = 0.0


@dataclass(frozen=True)
class EmbeddingResult(Result):
    """A vector (d,), float32."""

    vector: Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass(frozen=True)
class RankingResult(Result):
    """Items of an index by name, best first, and their scores, of which more is better."""

    items: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class SelectionResult(Result):
    """Chosen inputs, such as nodes of a graph, by index and in order, and the log-probability of the choice."""

    indices: tuple[int, ...] = ()
    score: float = 0.0


@dataclass
class MediaFeatures:
    """One image, audio clip or graph of a conversation as a head sees it.

    Args:
        kind: "image", "audio" or "graph".
        features: (N, d) encoder features, before the projector, with gradient while training.
        layout: Shape of those features; for images also the geometric transform.
        inputs: This item's encoder inputs: ``pixel_values`` (3, H, W) uint8, ``input_features`` (mels, frames), or a
            graph's ``x`` (nodes, d), ``edge_index`` (2, E).
        load_original: Reads the media as it was before the processor; called only by heads that need it.
    """

    kind: str
    features: Tensor
    layout: ItemLayout
    inputs: dict[str, Tensor] = field(default_factory=dict)
    load_original: Callable[[], Any] | None = None


@dataclass
class HeadContext:
    """Everything but hidden states that one call offers to its head.

    Args:
        call: The call; its regions are normalised to the input frame of :attr:`image`, 0 to 1.
        media: The conversation's media up to the call, in order; then the images, sounds and frames of videos that
            earlier calls of the reply made and this one is about: it refers to them, or to boxes or masks on them.
        earlier_results: Per earlier call of the reply its result, in original units, if this call refers to it, else
            None; in training what the record's targets say.
        parameters: Scalar conditions such as a resolution or a number of steps.
        episode: Names what a stateful head remembers together; empty for a conversation on its own.
    """

    call: Call
    media: list[MediaFeatures] = field(default_factory=list)
    earlier_results: list[Result | None] = field(default_factory=list)
    parameters: dict[str, float] = field(default_factory=dict)
    episode: str = ""

    def of_kind(self, kind: str) -> list[MediaFeatures]:
        """The media of one kind, in conversation order."""
        return [item for item in self.media if item.kind == kind]

    @property
    def referred_results(self) -> list[Result]:
        """The earlier results that the call refers to, in the order of its references."""
        references = [item.call_index for item in self.call.groundings if isinstance(item, ResultRef)]
        found = [self.earlier_results[index] for index in references]
        return [result for result in found if result is not None]

    @property
    def image(self) -> MediaFeatures:
        """The latest image, which is what an earlier call drew or changed where this call is about that.

        Raises:
            ValueError: If the conversation has none.
        """
        images = self.of_kind("image")
        if not images:
            raise ValueError(f"task '{self.call.task}' needs an image, the conversation has none")
        return images[-1]
