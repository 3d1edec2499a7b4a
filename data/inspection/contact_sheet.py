"""A page of samples: pictures with their boxes and masks, players, drawn graphs, and every turn of the conversation."""

from __future__ import annotations

import heapq
import zlib
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.inspection.drawing import ARROW, Overlay, audio_player, frames_of, graph_figure, mask_layer, picture
from data.media import Video, decode_media, decode_target
from data.media.results import made_by, reference_result, referring
from data.records import Part
from data.shards import Sample
from layers.calls import ImageResult, Result
from layers.media import Graph

"""Of a video."""


class Gallery:
    """Keeps a few samples of every split and task, chosen by the hash of their keys and by nothing else.

    Args:
        each: How many to keep of each.
        seed: Of the choice.
    """

    def __init__(self, each: int, seed: int = 0) -> None:
        self.each, self.seed = each, seed
        self._kept: dict[tuple[str, str], list[tuple[int, str, Sample]]] = defaultdict(list)

    def add(self, sample: Sample) -> None:
        """Keep the sample if its hash is among the lowest of its kind."""
        heap = self._kept[sample.record.split, sample.record.task]
        place = -zlib.crc32(f"{self.seed}/{sample.key}".encode())
        if len(heap) < self.each:
            heapq.heappush(heap, (place, sample.key, sample))
        elif heap and place > heap[0][0]:
            heapq.heapreplace(heap, (place, sample.key, sample))

    def samples(self) -> dict[tuple[str, str], list[Sample]]:
        """(split, task) -> samples, by key."""
        return {
            kind: [item[2] for item in sorted(heap, key=lambda x: x[1])] for kind, heap in sorted(self._kept.items())
        }


def write_contact_sheet(gallery: Gallery, summary: str, path: str | Path) -> None:
    """Write the page; it holds everything that it shows.

    Args:
        gallery: The samples.
        summary: HTML above them.
        path: Where to.
    """
    sections = "".join(
        f"<section><h2>{escape(task)} <span class='soft'>{escape(split)}</span></h2>"
        f"<div class='cards'>{''.join(map(card, samples))}</div></section>"
        for (split, task), samples in gallery.samples().items()
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(page("Samples", summary, sections), encoding="utf-8")


def page(title: str, summary: str, sections: str) -> str:
    """A whole page in the contact sheet's style.

    Args:
        title: Its heading.
        summary: HTML below it.
        sections: HTML of the rest, such as :func:`card`.
    """
    style = Path(__file__).with_name("contact_sheet.css").read_text()
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{style}</style></head><body>{ARROW}<header><h1>{escape(title)}</h1>{summary}</header>{sections}"
        "</body></html>"
    )


def card(sample: Sample, below: str = "") -> str:
    """One sample as HTML, and what stands below it; what does not decode is said in its place."""
    turns = []
    for place, conversation in enumerate(sample.record.conversations):
        if place:
            turns.append("<p class='soft small'>read apart from it:</p>")
        for message in conversation:
            parts = "".join(_part(part, sample) for part in message.content)
            turns.append(f"<div class='turn {message.role}'><span class='role'>{message.role}</span>{parts}</div>")
    meta = ", ".join(f"{name}: {value}" for name, value in sample.record.meta.items() if _short(value))
    told = f"<p class='soft small'>{escape(meta)}</p>" if meta else ""
    return (
        f"<article class='card'><p class='soft small'>{escape(sample.key)}</p>{''.join(turns)}{below}{told}</article>"
    )


def histogram(values: Sequence[float], title: str, bins: int = 24) -> str:
    """Counts over equal ranges as a small inline SVG, with the extremes below."""
    low, high = min(values), max(values)
    counts = torch.histc(torch.tensor(values, dtype=torch.float64), bins, low, high if high > low else low + 1)
    tallest = float(counts.max())
    bars = "".join(
        f"<rect x='{i * 8}' y='{48 - 48 * count / tallest:.1f}' width='7' height='{48 * count / tallest:.1f}'/>"
        for i, count in enumerate(counts.tolist())
    )
    label = escape(title)
    svg = f"<svg class='histogram' viewBox='0 0 {bins * 8} 48' role='img' aria-label='{label}'>{bars}</svg>"
    return f"<figure>{svg}<figcaption>{label}: {low:g} to {high:g}</figcaption></figure>"


def _part(part: Part, sample: Sample) -> str:
    if part.type == "text":
        return f"<p>{escape(part.text)}</p>"
    try:
        return _call(part, sample) if part.type == "call" else _medium(part, sample)
    except ValueError as error:
        return f"<p class='bad'>{escape(str(error))}</p>"


def _medium(part: Part, sample: Sample) -> str:
    media = sample.record.media[part.media]
    data = sample.members[media.file]
    raw = decode_media(media, data)
    if isinstance(raw, Tensor):
        return picture(raw, f"{part.media}, {media.size[0]}x{media.size[1]}")
    if isinstance(raw, Graph):
        return graph_figure(raw, f"{part.media}, {raw.num_nodes} nodes")
    if isinstance(raw, Video):
        return "".join(frames_of(raw, part.media))
    seconds = media.size[0] / float(media.sample_rate or 1)
    player = audio_player(data, media.file)
    return f"<figure>{player}<figcaption>{escape(part.media)}, {seconds:.2f} s</figcaption></figure>"


def _call(call: Part, sample: Sample) -> str:
    words = f"<p><code>{escape(call.task)}({escape(call.prompt)})</code></p>"
    boxes: list[Overlay] = [("tokens", item["box_xyxy"]) for item in call.groundings if item["type"] == "region"]
    target, value = sample.record.targets.get(call.target or ""), _value(sample, call)
    if target is not None:
        if target.type in ("label", "score", "order", "pair"):
            return words + f"<p>→ {escape(str(value.tolist() if isinstance(value, Tensor) else value))}</p>"
        if target.type == "image":
            return words + picture(value, "target")
        if target.type == "box":
            boxes.append(("reference", value))
        if target.type == "boxes":
            boxes += [("reference", item["box_xyxy"]) for item in value]
    raw = _image_of(sample, call) if boxes or value is not None else None
    if raw is None:
        return words
    masks = [value] if isinstance(value, Tensor) else _masks(value)
    layer = mask_layer(masks, masks) if masks else None
    return words + picture(raw, "", boxes, layer)


def _masks(value: Any) -> list[Tensor]:
    found = [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
    return [item["mask"] for item in found if "mask" in item]


def _image_of(sample: Sample, call: Part) -> Tensor | None:
    """The image that a call is about: what an earlier call of its turn made, or the latest one before it."""
    for turns in sample.record.conversations:
        latest = None
        for message in turns:
            results: list[Result] = []
            for part in message.content:
                if part.type == "image":
                    latest = part.media
                elif part is call:
                    made = [results[index] for index in made_by(referring(part, len(results)), results)]
                    pictures = [result.image for result in made if isinstance(result, ImageResult)]
                    return pictures[-1] if pictures else _decoded(sample, latest)
                elif part.type == "call":
                    results.append(reference_result(referring(part, len(results)), _value(sample, part)))
    return None


def _decoded(sample: Sample, name: str | None) -> Tensor | None:
    if name is None:
        return None
    media = sample.record.media[name]
    raw = decode_media(media, sample.members[media.file])
    assert isinstance(raw, Tensor)
    return raw


def _value(sample: Sample, call: Part) -> Any:
    """A call's decoded target; None without one."""
    target = sample.record.targets.get(call.target or "")
    return None if target is None else decode_target(target, sample.members[target.file] if target.file else None)


def _short(value: Any) -> bool:
    return isinstance(value, str | int | float) and len(str(value)) <= 60
