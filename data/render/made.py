"""Media that earlier calls of a reply made, for later calls that refer to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from data.media.video import frame_places
from data.render.shown import Still, process, processor_among
from layers.calls import AudioResult, Call, Grounding, ImageResult, Region, Result, VideoResult
from layers.layout import ItemLayout
from layers.media import Audio
from models.plan import BatchPlan


def stills_made(result: Result, max_frames: int) -> list[tuple[Still, float | None]]:
    """What is shown of a medium that a call made, with the seconds at which a frame of a video stands.

    Args:
        result: An image, a sound or a video.
        max_frames: Frames that stand for a video.
    """
    if isinstance(result, AudioResult):
        return [(Audio(result.waveform.detach().float().mean(0).cpu(), result.sample_rate), None)]
    if isinstance(result, VideoResult):
        places = frame_places(len(result.frames), max_frames)
        return [(result.frames[place].cpu(), place / result.fps) for place in places]
    assert isinstance(result, ImageResult)
    return [(result.image.cpu(), None)]


def processed(still: Still, seconds: float | None, kind: str, plan: BatchPlan) -> tuple[dict[str, Tensor], ItemLayout]:
    """A still's encoder inputs and layout.

    Raises:
        ValueError: If the model has no encoder for its modality, or its processor refuses it.
    """
    return process("an earlier result", still, seconds, processor_among(plan, kind, Counter({kind: 1})))


def carried_over(call: Call, original: Call, seen: Sequence[ItemLayout], pictures: Sequence[ItemLayout]) -> Call:
    """A call whose regions are on an image that an earlier call made, of which the language model saw nothing.

    It wrote them where it would have on what it did see: the latest image of the conversation, or an empty canvas. They
    keep their place as fractions of that.

    Args:
        call: Its regions are fractions of the input frame of what the language model saw.
        original: The same call in original units.
        seen: Of the images of the conversation.
        pictures: Of the images that earlier calls made and this one is about; the last one has the regions.

    Returns:
        The call with its regions as fractions of that image's input frame; as it is where there is none.
    """
    if not pictures:
        return call
    transform = pictures[-1].transform
    assert transform is not None, "an image's layout has a transform"
    width, height = transform.original_size
    groundings: list[Grounding] = []
    for written, grounding in zip(call.groundings, original.groundings, strict=True):
        if isinstance(grounding, Region):
            across, down = grounding.canvas or (seen[-1].original_size[0], seen[-1].original_size[1])
            x1, y1, x2, y2 = grounding.box_xyxy
            box = (x1 / across * width, y1 / down * height, x2 / across * width, y2 / down * height)
            groundings.append(Region(transform.normalise_box(box)))
        else:
            groundings.append(written)
    return replace(call, groundings=tuple(groundings))
