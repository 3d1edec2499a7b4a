"""Pictures, masks, boxes and graphs as inline SVG and data addresses."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image
from scipy.ndimage import binary_erosion
from torch import Tensor

from data.media import Video, encode_png
from layers.media import Graph

MASK_COLOURS = ((255, 95, 210), (255, 176, 59), (120, 220, 90), (90, 150, 255), (190, 120, 255), (60, 220, 200))
"""One per predicted mask, in turn."""
GRAPH_SIZE = 260
SHOWN_FRAMES = 6
SHARP_SIZE, SHOWN_SIZE = 128, 640
_STEPS = 150
_AUDIO_TYPES = {"flac": "audio/flac", "wav": "audio/wav", "ogg": "audio/ogg", "mp3": "audio/mpeg"}
Overlay = tuple[str, Sequence[float]]


def data_address(data: bytes, mime: str) -> str:
    """Bytes as a ``data:`` address."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def audio_player(data: bytes, file: str) -> str:
    """A player of an encoded clip; its type follows from the file's extension."""
    mime = _AUDIO_TYPES.get(file.rsplit(".", 1)[-1], "audio/flac")
    return f'<audio controls preload="metadata" src="{data_address(data, mime)}"></audio>'


def video_player(data: bytes, file: str) -> str:
    """A player of an encoded video; a picture of an animated GIF."""
    if file.endswith(".gif"):
        return f'<img class="picture" src="{data_address(data, "image/gif")}" alt="video">'
    return f'<video controls loop preload="metadata" src="{data_address(data, "video/mp4")}"></video>'


def picture(image: Tensor, caption: str = "", boxes: Sequence[Overlay] = (), layer: bytes | None = None) -> str:
    """A figure with an enlarged image.

    Args:
        image: (3, H, W) uint8.
        caption: Below it.
        boxes: (style class, xyxy in pixels) each, drawn in order.
        layer: A PNG of the image's size to lay over it.
    """
    height, width = int(image.shape[1]), int(image.shape[2])
    layers = [_embedded(image)] + ([data_address(layer, "image/png")] if layer is not None else [])
    images = "".join(f'<image href="{address}" width="{width}" height="{height}"/>' for address in layers)
    shapes = "".join(_rectangle(name, box) for name, box in boxes)
    label = escape(caption or "picture", quote=True)
    svg = f'<svg class="picture" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{images}{shapes}</svg>'
    return f"<figure>{svg}{f'<figcaption>{escape(caption)}</figcaption>' if caption else ''}</figure>"


def frames_of(video: Video, name: str) -> list[str]:
    """Figures of :data:`SHOWN_FRAMES` frames of a video, evenly spaced, with their times."""
    frames, times = video.sample(SHOWN_FRAMES)
    return [picture(frame, f"{name}, {time:.2f} s") for frame, time in zip(frames, times, strict=True)]


def mask_layer(predicted: Sequence[Tensor], references: Sequence[Tensor]) -> bytes:
    """A transparent PNG: predicted masks tinted, each in a colour of its own, the outlines of the references in white.

    Args:
        predicted: (H, W) bool each, best first, which lies on top.
        references: Likewise.

    Returns:
        The PNG, of the size of the first reference, or of the first predicted mask; masks of another are left out.
    """
    size = [*references, *predicted][0].shape
    pixels = np.zeros((*size, 4), np.uint8)
    for place in reversed(range(len(predicted))):
        if predicted[place].shape == size:
            pixels[predicted[place].numpy()] = (*MASK_COLOURS[place % len(MASK_COLOURS)], 150)
    for reference in references:
        inside = reference.numpy()
        if inside.shape == size:
            pixels[inside & ~binary_erosion(inside)] = (255, 255, 255, 235)
    stream = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(stream, "PNG")
    return stream.getvalue()


def graph_figure(graph: Graph, caption: str) -> str:
    """A node-link drawing; node 0 is filled, every node's text is its tooltip."""
    places = layout(graph)
    half, radius = GRAPH_SIZE / 2, 11
    points = half + places * (half - radius - 4)
    parts = []
    for source, target in graph.edge_index.T.tolist():
        (x1, y1), (x2, y2) = points[source], points[target]
        length = math.hypot(x2 - x1, y2 - y1) or 1.0
        x2, y2 = x2 - (x2 - x1) / length * (radius + 2), y2 - (y2 - y1) / length * (radius + 2)
        parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" marker-end="url(#arrow)"/>')
    for node, (x, y) in enumerate(points):
        style = ' class="target"' if node == 0 else ""
        title = f"<title>{escape(graph.node_texts[node])}</title>"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}"{style}>{title}</circle>')
        parts.append(f'<text x="{x:.1f}" y="{y + 3:.1f}">{node}</text>')
    svg = f'<svg class="graph" viewBox="0 0 {GRAPH_SIZE} {GRAPH_SIZE}" role="img" aria-label="{escape(caption)}">'
    return f"<figure>{svg}{''.join(parts)}</svg><figcaption>{escape(caption)}</figcaption></figure>"


def layout(graph: Graph) -> np.ndarray:
    """Places (nodes, 2) in -1..1: springs along edges, repulsion elsewhere (Fruchterman and Reingold, 1991).

    Node 0 starts in the middle and the others on a circle, so the same graph gives the same drawing.
    """
    count = graph.num_nodes
    angles = 2 * np.pi * np.arange(count) / max(1, count - 1)
    places = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    places[0] = 0
    if count == 1:
        return places
    wish = 1.6 / math.sqrt(count)
    linked = np.zeros((count, count), bool)
    for source, target in graph.edge_index.T.tolist():
        linked[source, target] = linked[target, source] = source != target
    for step in range(_STEPS):
        offsets = places[:, None] - places[None]
        distances = np.maximum(np.linalg.norm(offsets, axis=-1), 1e-3)
        force = wish**2 / distances - np.where(linked, distances**2 / wish, 0)
        np.fill_diagonal(force, 0)
        moves = (offsets / distances[..., None] * force[..., None]).sum(1) - 0.3 * places
        lengths = np.maximum(np.linalg.norm(moves, axis=1, keepdims=True), 1e-9)
        places = places + moves / lengths * np.minimum(lengths, 0.12 * (1 - step / _STEPS))
    places = places - (places.max(0) + places.min(0)) / 2
    return places / np.maximum(np.abs(places).max(0), 1e-6)


ARROW = (
    '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs><marker id="arrow" viewBox="0 0 6 6" '
    'refX="5" refY="3" markerWidth="6" markerHeight="6" orient="auto"><path d="M0 0L6 3L0 6z" fill="#8a949f"/></marker>'
    "</defs></svg>"
)
"""Defined once per page; :func:`graph_figure` points to it."""


def _embedded(image: Tensor) -> str:
    """An image as a data address: small ones exactly, large ones shrunk and compressed."""
    if max(image.shape[1:]) <= SHARP_SIZE:
        return data_address(encode_png(image), "image/png")
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((SHOWN_SIZE, SHOWN_SIZE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return data_address(stream.getvalue(), "image/jpeg")


def _rectangle(style: str, box: Sequence[float]) -> str:
    left, top, right, bottom = box
    place = f'x="{left:.2f}" y="{top:.2f}" width="{max(0.0, right - left):.2f}" height="{max(0.0, bottom - top):.2f}"'
    return f'<rect class="box {style}" {place}/>'
