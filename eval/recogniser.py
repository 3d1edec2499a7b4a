"""Judges drawn and edited digits: a classifier trained apart on real scans, and colours by the nearest palette entry.

The classifier sees opacity maps ("ink"), never colours, and is fitted on renderings of the scans of the validation and
test splits: the drawing head learned from the training scans, so the judge has not seen what it copies. Renderings of
the training scans are real data held out from the judge; its accuracy on them is printed beside every score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation
from torch import Tensor

from data.quickstart.scenes import CANVAS_SIZE, COLOURS, draw_canvas, paint_scan, scan_split, tight_box

SIDE = 16
RENDERINGS_PER_SCAN = 4
NUM_CHECKS = 600
EDIT_MARGIN = 2
EDIT_TOLERANCE = 8.0
_FAINTEST = 40.0  # an image whose strongest contrast (0..255, Euclidean over RGB) is below this shows nothing
_OFF_LINE = 70.0  # a pixel further than this from the line background - ink belongs to something else


@dataclass(frozen=True)
class Seen:
    """What the judge sees; None where it sees nothing."""

    digit: int | None
    colour: str | None


@dataclass(frozen=True)
class EditVerdict:
    """The three parts of a right edit."""

    digit: bool
    colour: bool
    untouched: bool

    @property
    def right(self) -> bool:
        """Whether the digit survived, has the new colour, and nothing else changed."""
        return self.digit and self.colour and self.untouched


class DigitRecogniser:
    """A support vector machine over ink maps.

    Args:
        scans: (scan, digit) pairs to render and learn.
        seed: Of sizes, places and angles.
    """

    def __init__(self, scans: Sequence[tuple[int, int]], seed: int = 0) -> None:
        try:
            from sklearn.svm import SVC
        except ImportError:
            raise RuntimeError("judging drawn digits needs scikit-learn: install the extra 'synthesis'") from None
        rng = np.random.default_rng([seed, 7])
        inks = [_rendered_ink(scan, rng) for scan, _ in scans for _ in range(RENDERINGS_PER_SCAN)]
        labels = [digit for _, digit in scans for _ in range(RENDERINGS_PER_SCAN)]
        self._classifier: Any = SVC(C=10.0, gamma="scale").fit(np.stack([_features(ink) for ink in inks]), labels)

    def recognise(self, ink: np.ndarray) -> int | None:
        """The digit of an ink map (H, W) in 0..1, or None if it is empty."""
        if not (ink >= 0.5).any():
            return None
        return int(self._classifier.predict(_features(ink)[None])[0])

    def look(self, image: np.ndarray) -> Seen:
        """Judge a picture (H, W, 3) of one digit on a plain dark background."""
        pixels = image.astype(np.float64)
        frame = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3)])
        background = np.median(frame, axis=0)
        contrast = np.linalg.norm(pixels - background, axis=-1)
        strongest = float(np.percentile(contrast, 98))
        if strongest < _FAINTEST:
            return Seen(None, None)
        ink_colour = np.median(pixels[contrast >= 0.8 * strongest], axis=0)
        return Seen(self.recognise(_ink(pixels, background, ink_colour)), nearest_colour(ink_colour))

    def judge_edit(
        self, before: np.ndarray, after: np.ndarray, mask: np.ndarray, digit: int, colour: str
    ) -> EditVerdict:
        """Judge an edit that should give one object another colour.

        Args:
            before: (H, W, 3) uint8.
            after: (H, W, 3) uint8.
            mask: (H, W) the object's visible ink before.
            digit: What it shows.
            colour: Its new colour.

        Returns:
            Whether, within the object's box, the digit is recognised in the ink that was painted; whether the colour
            inside the mask is nearest to the one asked for; and whether the mean absolute change outside the mask,
            dilated by 2 pixels, stays below 8 of 255.
        """
        pixels = after.astype(np.float64)
        ink_colour = np.median(pixels[mask], axis=0)
        near = binary_dilation(mask, np.ones((3, 3)), iterations=EDIT_MARGIN)
        outside = ~near
        background = np.median(before[outside].astype(np.float64), axis=0)
        ink = _ink(pixels, background, ink_colour)
        change = np.abs(pixels - before.astype(np.float64))[outside]
        return EditVerdict(
            digit=self.recognise(_box_of(ink, near)) == digit,
            colour=nearest_colour(ink_colour) == colour,
            untouched=bool(change.mean() < EDIT_TOLERANCE),
        )


@cache
def recogniser(data_seed: int) -> tuple[DigitRecogniser, float]:
    """The judge for quickstart data of a seed, and its accuracy (digit and colour) on renderings of held-out scans."""
    split = scan_split(data_seed)
    scans = [(scan, digit) for name in ("val", "test") for digit, own in split[name].items() for scan in own]
    judge = DigitRecogniser(scans)
    rng = np.random.default_rng([data_seed, 8])
    names = list(COLOURS)
    right = 0
    for index in range(NUM_CHECKS):
        digit, colour = index % 10, names[index % len(names)]
        canvas, _ = draw_canvas(digit, colour, "train", data_seed, rng)
        right += judge.look(canvas) == Seen(digit, colour)
    return judge, right / NUM_CHECKS


def nearest_colour(rgb: np.ndarray) -> str:
    """The palette colour at the smallest Euclidean distance from an RGB value (3,) in 0..255."""
    return min(COLOURS, key=lambda name: float(np.linalg.norm(rgb - np.asarray(COLOURS[name], np.float64))))


def to_pixels(image: Tensor) -> np.ndarray:
    """(3, H, W) uint8 as (H, W, 3)."""
    return image.permute(1, 2, 0).cpu().numpy()


def _rendered_ink(scan: int, rng: np.random.Generator) -> np.ndarray:
    size = rng.uniform(16, 30)
    middle = CANVAS_SIZE / 2
    centre = (middle + rng.uniform(-1, 1), middle + rng.uniform(-1, 1))
    return paint_scan(scan, CANVAS_SIZE, centre, size, rng)


def _ink(pixels: np.ndarray, background: np.ndarray, ink_colour: np.ndarray) -> np.ndarray:
    """Opacity (H, W) of the ink: where each pixel lies on the way from background to ink; 0 off that way."""
    way = ink_colour - background
    length = float(np.linalg.norm(way))
    if length < 1.0:
        return np.zeros(pixels.shape[:2])
    along = (pixels - background) @ way / length**2
    off = np.linalg.norm(pixels - background - along[..., None] * way, axis=-1)
    return np.where(off < _OFF_LINE, np.clip(along, 0, 1), 0.0)


def _box_of(ink: np.ndarray, where: np.ndarray) -> np.ndarray:
    left, top, right, bottom = (int(edge) for edge in tight_box(where))
    return ink[top:bottom, left:right]


def _features(ink: np.ndarray) -> np.ndarray:
    """The ink's bounding box, centred in a square and resized to 16 x 16, as one vector."""
    left, top, right, bottom = (int(edge) for edge in tight_box(ink >= 0.5))
    crop = ink[top:bottom, left:right].astype(np.float32)
    side = max(crop.shape)
    square = np.zeros((side, side), np.float32)
    down, across = (side - crop.shape[0]) // 2, (side - crop.shape[1]) // 2
    square[down : down + crop.shape[0], across : across + crop.shape[1]] = crop
    return np.asarray(Image.fromarray(square).resize((SIDE, SIDE), Image.Resampling.BILINEAR)).reshape(-1)
