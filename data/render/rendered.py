"""What rendering makes of a record: ids, labels, media in place, and calls with what their heads learn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from layers.calls import Call, Result
from layers.head import HeadTarget
from layers.layout import ItemLayout

IGNORED = -100


class RenderError(ValueError):
    """A record that a plan cannot render; names the record, what was expected and what was given."""


@dataclass
class RenderedMedia:
    """One use of a media item, or of one frame of a video.

    Args:
        kind: "image", "audio" or "graph".
        name: Its name in the record.
        frame: Which of a video's frames that are shown; 0 for other media.
        inputs: The processor's tensors; empty where nothing was decoded.
        layout: The encoder's output for it.
        positions: Positions of its placeholders in the sample's ``input_ids``.
        original: The image before the processor, for training where a head looks at it.
        made: Whether an earlier call of the turn made it: heads see it, and the language model does not.
    """

    kind: str
    name: str
    inputs: dict[str, Tensor]
    layout: ItemLayout
    positions: list[int]
    frame: int = 0
    original: Tensor | None = None
    made: bool = False


@dataclass
class RenderedSampleCall:
    """A call of an assistant turn.

    Args:
        head: The head that answers.
        call: With normalised regions; ``token_span`` and ``state_positions`` index the sample's ``input_ids``.
        media: Indices into the sample's media of all that stand before it, then of those that earlier calls made and it
            refers to.
        target: What the head learns; empty where there is nothing.
        earlier_results: Per earlier call of the turn what it gave, by the record's targets, if this call refers to it.
    """

    head: str
    call: Call
    media: list[int]
    target: HeadTarget
    earlier_results: list[Result | None] = field(default_factory=list)


@dataclass
class Rendered:
    """One sample, ready to be packed.

    Args:
        key: Key of the record, "" for a prompt.
        input_ids: T ids.
        labels: T labels; -100 where nothing is learned.
        media: Media in order of their placeholders.
        calls: Calls in order.
        instruction: Ids of the first user turn's words in quotes, where the plan asks for them.
        companions: The record's further conversations, which become segments of the same pack.
    """

    key: str
    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    media: list[RenderedMedia] = field(default_factory=list)
    calls: list[RenderedSampleCall] = field(default_factory=list)
    instruction: list[int] = field(default_factory=list)
    companions: list[Rendered] = field(default_factory=list)

    @property
    def segments(self) -> list[Rendered]:
        """The sample and its companions: what attention never crosses."""
        return [self, *self.companions]

    @property
    def num_tokens(self) -> int:
        """Positions of all segments."""
        return sum(len(segment.input_ids) for segment in self.segments)


class RenderedSize(NamedTuple):
    """What a rendered sample costs, with its companions.

    Args:
        tokens: Positions of the language model.
        cost: What the encoders' work costs, in such positions (``BatchPlan.feature_costs``).
    """

    tokens: int
    cost: int
