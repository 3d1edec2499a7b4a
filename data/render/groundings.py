"""Groundings of a record's calls, checked: in original units, and as fractions of what the model sees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from data.render.rendered import RenderedMedia
from layers.calls import Grounding, NodeRef, Region, ResultRef, TimeSpan
from layers.geometry import Box
from layers.layout import ItemLayout


def grounding_of(
    value: Mapping[str, Any], media: Sequence[RenderedMedia], num_earlier: int
) -> tuple[Grounding, Grounding]:
    """A grounding in original units, and as the model writes it: fractions of the latest image or clip.

    Args:
        value: As a record holds it, see :class:`data.records.Part`.
        media: What stands before the call.
        num_earlier: Earlier calls of the turn.

    Raises:
        ValueError: If it does not fit them, or the model does not see it.
    """
    kind = value["type"]
    if kind == "region":
        x1, y1, x2, y2 = _numbers(value, "box_xyxy", 4)
        if "canvas" in value:
            return _on_canvas((x1, y1, x2, y2), _numbers(value, "canvas", 2), media)
        layout = _latest(media, "image", "region")
        return Region((x1, y1, x2, y2)), Region(_normalised((x1, y1, x2, y2), layout))
    if kind == "time_span":
        seconds = _latest(media, "audio", "time span").seconds
        assert seconds is not None
        start, end = (*_numbers(value, "start", 1), *_numbers(value, "end", 1))
        if not 0 <= start <= end <= seconds:
            raise ValueError(f"time span: expected 0 <= start <= end <= {seconds} seconds, got {start} to {end}")
        return TimeSpan(start, end), TimeSpan(start / seconds, end / seconds)
    if kind == "node":
        nodes = _latest(media, "graph", "node").original_size[0]
        node = NodeRef(_index(value, "index", nodes, "node"))
        return node, node
    reference = ResultRef(_index(value, "call_index", num_earlier, "earlier call of the turn"))
    return reference, reference


def _latest(media: Sequence[RenderedMedia], kind: str, what: str) -> ItemLayout:
    layouts = [item.layout for item in media if item.kind == kind]
    if not layouts:
        raise ValueError(f"{what}: expected {kind} before it, got {[item.kind for item in media]}")
    return layouts[-1]


def _on_canvas(box: Box, canvas: tuple[float, ...], media: Sequence[RenderedMedia]) -> tuple[Grounding, Grounding]:
    """A region of a drawing to be made: fractions of its canvas, where there is no image that they could be on."""
    width, height = canvas
    x1, y1, x2, y2 = box
    if any(item.kind == "image" for item in media):
        raise ValueError("region: expected one on the latest image, got one on an empty canvas")
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise ValueError(f"region: expected x1 < x2 <= {width} and y1 < y2 <= {height} from 0 on, got {list(box)}")
    return Region(box, (width, height)), Region((x1 / width, y1 / height, x2 / width, y2 / height))


def _normalised(box: Box, layout: ItemLayout) -> Box:
    transform = layout.transform
    if transform is None:
        raise ValueError("region: expected an image with a geometric transform, its layout has none")
    width, height = transform.original_size
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise ValueError(f"region: expected x1 < x2 <= {width} and y1 < y2 <= {height} from 0 on, got {list(box)}")
    seen = transform.normalise_box(box)
    if seen[0] >= seen[2] or seen[1] >= seen[3]:
        raise ValueError(
            f"region: expected one that the model sees, the crop {transform.crop_xyxy} removes {list(box)}"
        )
    return seen


def _numbers(value: Mapping[str, Any], name: str, count: int) -> tuple[float, ...]:
    given: Any = value.get(name)
    items: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    good = len(items) == count and all(
        isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item) for item in items
    )
    if not good:
        raise ValueError(f"grounding '{value['type']}' {name}: expected {count} finite number(s), got {given!r}")
    return tuple(float(item) for item in items)


def _index(value: Mapping[str, Any], name: str, limit: int, what: str) -> int:
    given = value.get(name)
    if type(given) is not int or not 0 <= given < limit:
        raise ValueError(
            f"grounding '{value['type']}' {name}: expected one of {limit} {what}(s) from 0 on, got {given!r}"
        )
    return given
