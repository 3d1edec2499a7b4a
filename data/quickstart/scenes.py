"""Scenes of real handwritten digits: the 8x8 scans of scikit-learn, enlarged, coloured and composited on backgrounds.

The scans are the UCI "Optical Recognition of Handwritten Digits" test set (CC BY 4.0), as ``load_digits`` ships it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np
from PIL import Image

SCENE_SIZE = 64
CANVAS_SIZE = 32
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (235, 45, 40),
    "green": (50, 205, 70),
    "blue": (60, 120, 255),
    "yellow": (250, 225, 45),
    "purple": (190, 60, 225),
    "white": (245, 245, 245),
}
_SHARES = {"train": 0.65, "val": 0.10, "test": 0.25}
_VISIBLE_SHARE = 0.72
_LARGEST_IOU = 0.15
_CENTRE_GAP = 4.0


@dataclass(frozen=True)
class Digit:
    """One digit of a scene.

    Args:
        scan: Index of the scan in ``load_digits``.
        digit: What it shows.
        colour: A key of :data:`COLOURS`.
        tint: The colour as painted, (3,) in 0..255.
        alpha: (H, W) opacity on the scene's canvas, 0..1.
        size: Height in pixels that the scan was enlarged to.
        mask: (H, W) visible ink.
        box_xyxy: Tight box of the visible ink, continuous edges.
    """

    scan: int
    digit: int
    colour: str
    tint: tuple[float, float, float]
    alpha: np.ndarray
    size: float
    mask: np.ndarray
    box_xyxy: tuple[float, float, float, float]

    @property
    def name(self) -> str:
        """Colour and digit: "red 7"."""
        return f"{self.colour} {self.digit}"

    @property
    def centre_x(self) -> float:
        """Horizontal centre of the box, in pixels."""
        return (self.box_xyxy[0] + self.box_xyxy[2]) / 2


@dataclass(frozen=True)
class Scene:
    """Digits on a background, painted in order.

    Args:
        background: (H, W, 3) float, 0..255.
        digits: The digits, bottom first.
    """

    background: np.ndarray
    digits: tuple[Digit, ...]

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        canvas = self.background.copy()
        for item in self.digits:
            alpha = item.alpha[..., None]
            canvas = canvas * (1 - alpha) + np.asarray(item.tint, np.float32) * alpha
        return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)

    def recoloured(self, index: int, colour: str, rng: np.random.Generator) -> Scene:
        """The same scene with another colour on one digit."""
        digits = list(self.digits)
        digits[index] = replace(digits[index], colour=colour, tint=_tint(colour, rng))
        return Scene(self.background, tuple(digits))

    def left_to_right(self) -> list[Digit]:
        """The digits by the centre of their box."""
        return sorted(self.digits, key=lambda item: item.centre_x)

    def where(self, digit: int | None = None, colour: str | None = None) -> list[int]:
        """Indices of the digits that match."""
        return [
            index
            for index, item in enumerate(self.digits)
            if (digit is None or item.digit == digit) and (colour is None or item.colour == colour)
        ]


@cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise RuntimeError("the quickstart's images need scikit-learn: install the extra 'synthesis'") from None
    bunch = load_digits()
    return (bunch.images / 16.0).astype(np.float32), bunch.target.astype(int)


@cache
def scan_split(seed: int) -> dict[str, dict[int, tuple[int, ...]]]:
    """Which scans each split may use: split -> digit -> indices, drawn per digit so that the splits look alike."""
    labels = _scans()[1]
    rng = np.random.default_rng([seed, 1])
    split: dict[str, dict[int, tuple[int, ...]]] = {name: {} for name in _SHARES}
    for digit in range(10):
        order = rng.permutation(np.flatnonzero(labels == digit)).tolist()
        first = round(len(order) * _SHARES["train"])
        second = first + round(len(order) * _SHARES["val"])
        for name, part in (("train", order[:first]), ("val", order[first:second]), ("test", order[second:])):
            split[name][digit] = tuple(sorted(part))
    return split


def _tint(colour: str, rng: np.random.Generator) -> tuple[float, float, float]:
    red, green, blue = (float(np.clip(c + rng.uniform(-10, 10), 0, 255)) for c in COLOURS[colour])
    return red, green, blue


def muted_background(
    size: int, rng: np.random.Generator, kinds: Sequence[str] = ("flat", "gradient", "noise")
) -> np.ndarray:
    """A dark background of little saturation, (size, size, 3) float in 0..255."""
    base = rng.uniform(12, 62) + rng.uniform(-10, 10, 3)
    kind = kinds[int(rng.integers(len(kinds)))]
    canvas = np.broadcast_to(base, (size, size, 3)).astype(np.float32)
    if kind == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        ys, xs = np.mgrid[0:size, 0:size] / (size - 1) - 0.5
        canvas = canvas + ((np.cos(angle) * xs + np.sin(angle) * ys)[..., None] * rng.uniform(-40, 40, 3)).astype("f4")
    elif kind == "noise":
        coarse = rng.normal(0, 1, (8, 8)).astype(np.float32)
        smooth = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
        fine = rng.normal(0, 1, (size, size, 3)).astype(np.float32)
        canvas = canvas + 9 * smooth[..., None] + 3 * fine
    return np.clip(canvas, 0, 90).astype(np.float32)


def paint_scan(
    scan: int, canvas: int, centre: tuple[float, float], size: float, rng: np.random.Generator
) -> np.ndarray:
    """Enlarge a scan onto an empty canvas, slightly turned.

    Args:
        scan: Its index.
        canvas: Height and width of the canvas in pixels.
        centre: (x, y) of the scan's centre on the canvas.
        size: Height in pixels that the scan's 8 rows become.
        rng: Draws the angle and the aspect ratio.

    Returns:
        (canvas, canvas) opacity, 0..1.
    """
    angle = np.deg2rad(rng.uniform(-9, 9))
    scale = 8.0 / size
    across = scale / rng.uniform(0.9, 1.1)
    padded = Image.fromarray(np.pad(_scans()[0][scan], 4))  # mode F; the scan's centre is at (8, 8)
    a, b = across * np.cos(angle), across * np.sin(angle)
    d, e = -scale * np.sin(angle), scale * np.cos(angle)
    x, y = centre
    coefficients = (a, b, 8.0 - a * x - b * y, d, e, 8.0 - d * x - e * y)
    raw = padded.transform((canvas, canvas), Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BICUBIC)
    return np.clip((np.asarray(raw) - 0.22) / 0.45, 0, 1)


def draw_scene(wanted: Sequence[tuple[int, str]], split: str, seed: int, rng: np.random.Generator) -> Scene:
    """Place the wanted (digit, colour) pairs at random.

    Every digit keeps at least 72 % of its ink visible, boxes overlap by an IoU of 0.15 at most, and the horizontal
    centres stand at least four pixels apart, so that "left to right" has one answer.

    Args:
        wanted: What to show, each pair once.
        split: Whose scans to use.
        seed: Seed of the scan split.
        rng: Draws everything else.
    """
    pool = scan_split(seed)[split]
    for restart in range(50):
        digits: list[Digit] = []
        for digit, colour in wanted:
            for _ in range(40):
                size = rng.uniform(16, 30 - min(restart, 6))
                scan = pool[digit][int(rng.integers(len(pool[digit])))]
                low, high = size / 2 - 1, SCENE_SIZE - size / 2 + 1
                centre = (rng.uniform(low, high), rng.uniform(low, high))
                alpha = paint_scan(scan, SCENE_SIZE, centre, size, rng)
                ink = alpha >= 0.5
                top = Digit(scan, digit, colour, _tint(colour, rng), alpha, size, ink, tight_box(ink))
                placed = _place(digits, top)
                if placed is not None:
                    digits = placed
                    break
            else:
                break
        else:
            return Scene(muted_background(SCENE_SIZE, rng), tuple(digits))
    raise RuntimeError(f"no room for {list(wanted)} after 50 restarts")


def _place(below: list[Digit], top: Digit) -> list[Digit] | None:
    """The digits with one more on top, masks and boxes brought up to date, or None where it does not fit."""
    settled = []
    for item in below:
        mask = item.mask & ~top.mask
        if mask.sum() < _VISIBLE_SHARE * (item.alpha >= 0.5).sum():
            return None
        box = tight_box(mask)
        if box_iou(box, top.box_xyxy) > _LARGEST_IOU:
            return None
        settled.append(replace(item, mask=mask, box_xyxy=box))
    settled.append(top)
    centres = sorted(item.centre_x for item in settled)
    close = any(after - before < _CENTRE_GAP for before, after in pairwise(centres))
    return None if close else settled


def tight_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Box of a non-empty mask (H, W), xyxy, continuous edges."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def box_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two xyxy boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)


def draw_canvas(digit: int, colour: str, split: str, seed: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """One digit that fills most of a small canvas: what "draw a blue 4" asks for.

    Returns:
        (32, 32, 3) uint8, and the scan used.
    """
    pool = scan_split(seed)[split][digit]
    scan = pool[int(rng.integers(len(pool)))]
    size = rng.uniform(25, 30)
    middle = CANVAS_SIZE / 2
    centre = (middle + rng.uniform(-2, 2), middle + rng.uniform(-1, 1))
    alpha = paint_scan(scan, CANVAS_SIZE, centre, size, rng)[..., None]
    background = muted_background(CANVAS_SIZE, rng, ("flat", "gradient"))
    canvas = background * (1 - alpha) + np.asarray(_tint(colour, rng), np.float32) * alpha
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), scan
