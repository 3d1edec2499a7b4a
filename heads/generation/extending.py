"""Images continued beyond one of their sides, as often as wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from heads.generation.denoising import Denoiser
from heads.generation.images import to_uint8

Side = Literal["right", "left", "down", "up"]
SIDES: tuple[Side, ...] = ("right", "left", "down", "up")
Fill = Callable[[tuple[int, int], tuple[Tensor, Tensor]], Tensor]
"""((width, height) in pixels, (known latents, mask of them)) -> latents."""


def extended(
    source: Tensor, side: Side, canvas_size: tuple[int, int], overlap: int, denoiser: Denoiser, fill: Fill
) -> Tensor:
    """An image with as much beside it as a canvas holds beyond a strip of it.

    The strip along the side is given at every step of the denoising, so that what is beside it fits it; within it the
    image fades into what the denoiser made of it.

    Args:
        source: (3, H, W) uint8.
        side: Where it is continued.
        canvas_size: (width, height) of what is denoised; the side's own length may differ.
        overlap: Pixels of the strip.
        denoiser: The space in which the image is known.
        fill: Denoises a canvas of which some is known.

    Returns:
        (3, H, W) uint8, longer by the canvas without the strip.

    Raises:
        ValueError: If the image has less than the strip on that side.
    """
    axis, before = (2 if side in ("right", "left") else 1), side in ("left", "up")
    factor = denoiser.space.factor
    strip = max(factor, overlap // factor * factor)
    length = source.shape[axis]
    if length < strip:
        raise ValueError(f"an image to continue: expected at least {strip} pixels on its {side}, got {length}")
    shown = source.narrow(axis, 0 if before else length - strip, strip)
    known = denoiser.space.encode(shown[None].to(denoiser.unet.device).float() / 127.5 - 1)
    size = (canvas_size[0], source.shape[1]) if axis == 2 else (source.shape[2], canvas_size[1])
    latents = known.new_zeros(*known.shape[:2], size[1] // factor, size[0] // factor)
    mask = torch.zeros(latents.shape[-2:], dtype=torch.bool, device=known.device)
    start = latents.shape[axis + 1] - known.shape[axis + 1] if before else 0
    latents.narrow(axis + 1, start, known.shape[axis + 1]).copy_(known)
    mask.narrow(axis - 1, start, known.shape[axis + 1]).fill_(True)
    made = to_uint8(denoiser.space.decode(fill(size, (latents, mask))))[0]
    return _joined(source.cpu(), made, strip, axis, before)


def _joined(image: Tensor, made: Tensor, strip: int, axis: int, before: bool) -> Tensor:
    """The image, fading within the strip into what was made of it, and the rest of what was made."""
    rest, new = image.shape[axis] - strip, made.shape[axis] - strip
    shown, kept = image.narrow(axis, 0 if before else rest, strip), image.narrow(axis, strip if before else 0, rest)
    again, beyond = made.narrow(axis, new if before else 0, strip), made.narrow(axis, 0 if before else strip, new)
    fading = (torch.arange(strip) + 0.5) / strip
    fading = 1 - fading if before else fading
    fading = fading if axis == 2 else fading[:, None]
    between = (shown.float() * (1 - fading) + again.float() * fading).round().to(torch.uint8)
    return torch.cat([beyond, between, kept] if before else [kept, between, beyond], dim=axis)
