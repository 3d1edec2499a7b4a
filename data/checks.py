"""What can be wrong with a sample beyond its format: media, targets and groundings that do not fit one another."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from data.drafts import audio_extension, image_size
from data.media import Video, decode_media, decode_target
from data.media.results import made_by, reference_result, referring
from data.records import Media, Part, Record
from data.shards import Sample
from layers.calls import ImageResult, Result

_ALIASES = {"jpeg": "jpg", "tiff": "tif", "oga": "ogg", "opus": "ogg"}
EDGE = 1e-6
"""Boxes may leave their image by this much, a rounding error."""


def problems_of(sample: Sample, tasks: Collection[str] | None = None) -> list[str]:
    """Everything wrong with a sample, one line each; nothing if it is good.

    Every medium and target is decoded. Boxes and regions must lie in the latest image before them, masks must have
    its size, time spans must lie in the latest clip, nodes in the latest graph; where a call is about an image that an
    earlier one of its turn made, its target is on that.

    Args:
        sample: The sample.
        tasks: Tasks that calls may name; None takes any.
    """
    found = []
    for media in sample.record.media.values():
        try:
            raw = decode_media(media, sample.members[media.file])
            if isinstance(raw, Video):
                raw.check()
        except ValueError as error:
            found.append(str(error))
        else:
            found += _problems_of_name(media, sample.members[media.file])
    targets: dict[str, Any] = {}
    for name, target in sample.record.targets.items():
        try:
            targets[name] = decode_target(target, sample.members[target.file] if target.file else None)
        except ValueError as error:
            found.append(f"target '{name}': {error}")
    unused = sorted(set(sample.record.media) - {part.media for part in sample.record.parts})
    if unused:
        found.append(f"media: expected every one in a message, got {unused} in none")
    for turns in sample.record.conversations:
        latest: dict[str, Media] = {}
        for message in turns:
            results: list[Result] = []
            for part in message.content:
                if part.media:
                    media = sample.record.media[part.media]
                    latest["image" if part.type == "video" else part.type] = media  # of a video, its last frame
                elif part.type == "call":
                    found += _problems_of_call(part, sample.record, targets, latest, results, tasks)
    return found


def _problems_of_name(media: Media, data: bytes) -> list[str]:
    """Media are decoded by what they are; a name that says something else is for others to trip over."""
    if media.type not in ("image", "audio"):
        return []
    _, _, given = media.file.rpartition(".")
    expected = image_size(data)[1] if media.type == "image" else audio_extension(data)
    return [] if _ALIASES.get(given, given) == expected else [f"'{media.file}': expected the extension '{expected}'"]


def _problems_of_call(
    call: Part,
    record: Record,
    targets: Mapping[str, Any],
    latest: Mapping[str, Media],
    results: list[Result],
    tasks: Collection[str] | None,
) -> list[str]:
    """Those of a call, whose result by its target is added to those of the turn's earlier calls."""
    found = []
    if tasks is not None and call.task not in tasks:
        found.append(f"call: expected a task of {sorted(tasks)}, got '{call.task}'")
    for grounding in call.groundings:
        problem = _problem_of_grounding(grounding, latest, len(results))
        if problem:
            found.append(f"call of '{call.task}': {problem}")
    referred = referring(call, len(results))
    made = [results[index] for index in made_by(referred, results)]
    value = targets.get(call.target) if call.target is not None else None
    if value is not None and call.target is not None:
        problem = _problem_of_target(record.targets[call.target].type, value, _on_made(latest, made))
        if problem:
            found.append(f"target '{call.target}': {problem}")
            value = None
    results.append(reference_result(referred, value))
    return found


def _on_made(latest: Mapping[str, Media], made: Sequence[Result]) -> Mapping[str, Media]:
    """What a call's target is on: the image that earlier calls made, or what stands before it."""
    pictures = [result.image for result in made if isinstance(result, ImageResult)]
    if not pictures:
        return latest
    return {**latest, "image": Media("image", "", (pictures[-1].shape[2], pictures[-1].shape[1]))}


def _problem_of_target(kind: str, value: Any, latest: Mapping[str, Media]) -> str | None:
    if kind in ("boxes", "masks"):
        one = {"boxes": ("box", "box_xyxy"), "masks": ("mask", "mask")}[kind]
        return next(filter(None, (_problem_of_target(one[0], item[one[1]], latest) for item in value)), None)
    if kind == "box":
        return _outside(value, latest.get("image"))
    if kind == "mask":
        image = latest.get("image")
        assert isinstance(value, Tensor)
        if image is None:
            return "expected an image before the mask, got none"
        if tuple(reversed(value.shape)) != image.size[:2]:
            return f"expected a mask of {image.size[0]}x{image.size[1]}, got {value.shape[1]}x{value.shape[0]}"
    return None


def _problem_of_grounding(grounding: Mapping[str, Any], latest: Mapping[str, Media], num_earlier: int) -> str | None:
    kind = grounding["type"]
    if kind == "result":
        index: Any = grounding.get("call_index")
        good = _is_below(index, num_earlier)
        return None if good else f"result: expected one of {num_earlier} earlier calls of the turn, got {index}"
    if kind == "region":
        if "canvas" not in grounding:
            return _outside(grounding.get("box_xyxy"), latest.get("image"))
        if "image" in latest:
            return "region: expected one on the latest image, got one on an empty canvas"
        return _outside(grounding.get("box_xyxy"), None, grounding["canvas"])
    if kind == "time_span":
        clip = latest.get("audio")
        if clip is None or clip.sample_rate is None:
            return "time span: expected a clip before it, got none"
        start: Any = grounding.get("start")
        end: Any = grounding.get("end")
        length = clip.size[0] / clip.sample_rate
        good = _numbers([start, end]) and 0 <= start < end <= length + EDGE
        return None if good else f"time span: expected 0 <= start < end <= {length:.3f} s, got {start} to {end}"
    if kind == "node":
        graph = latest.get("graph")
        if graph is None:
            return "node: expected a graph before it, got none"
        node: Any = grounding.get("index")
        good = _is_below(node, graph.size[0])
        return None if good else f"node: expected 0 to {graph.size[0] - 1}, got {node}"
    return None


def _outside(box: Any, image: Media | None, canvas: Any = None) -> str | None:
    if image is None and canvas is None:
        return "box: expected an image before it, got none"
    size = image.size[:2] if image is not None else canvas
    if not (isinstance(size, Sequence) and len(size) == 2 and _numbers(size) and min(size) > 0):
        return f"canvas: expected its width and height, got {size!r}"
    width, height = size
    good = isinstance(box, Sequence) and len(box) == 4 and _numbers(box)
    good = good and -EDGE <= box[0] < box[2] <= width + EDGE and -EDGE <= box[1] < box[3] <= height + EDGE
    return None if good else f"box: expected x1 < x2 and y1 < y2 within {width}x{height} pixels, got {list(box or ())}"


def _is_below(index: Any, count: int) -> bool:
    return type(index) is int and 0 <= index < count


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
