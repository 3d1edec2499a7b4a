"""The transform and its inverse, for any size of image and any way of fitting it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.geometry import GeometricTransform

Size = tuple[int, int]
MODES: dict[str, Callable[[Size, Size], GeometricTransform]] = {
    "stretch": GeometricTransform.resize,
    "letterbox": GeometricTransform.letterbox,
    "longest_side": lambda original, size: GeometricTransform.longest_side(original, size[0]),
    "pad_square": GeometricTransform.pad_square,
    "center_crop": GeometricTransform.center_crop,
    "resize_crop": GeometricTransform.resize_crop,
}
SHOWING_ALL = ("stretch", "letterbox", "longest_side", "pad_square")
sides = st.integers(1, 3000)


@settings(max_examples=200, deadline=None)
@given(
    mode=st.sampled_from(sorted(MODES)),
    width=sides,
    height=sides,
    side=st.sampled_from([32, 336, 1024]),
    data=st.data(),
)
def test_boxes_come_back_exactly_at_any_aspect_ratio(
    mode: str, width: int, height: int, side: int, data: st.DataObject
) -> None:
    transform = MODES[mode]((width, height), (side, side))
    x1, x2 = sorted(data.draw(st.tuples(st.floats(0, width), st.floats(0, width))))
    y1, y2 = sorted(data.draw(st.tuples(st.floats(0, height), st.floats(0, height))))
    box = (x1, y1, x2, y2)
    there = transform.apply_boxes([box])
    torch.testing.assert_close(
        transform.invert_boxes(there)[0], torch.tensor(box, dtype=torch.float64), atol=1e-8 * max(width, height), rtol=0
    )
    if mode in SHOWING_ALL:  # nothing is clipped, so that fractions of the input keep everything too
        fractions = torch.tensor(transform.normalise_box(box), dtype=torch.float64)
        again = transform.invert_boxes(fractions * fractions.new_tensor([side] * 4))[0]
        torch.testing.assert_close(
            again, torch.tensor(box, dtype=torch.float64), atol=1e-8 * max(width, height), rtol=0
        )


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(SHOWING_ALL),
    width=st.integers(8, 400),
    height=st.integers(8, 400),
    coarse=st.sampled_from([1, 2, 4]),
    place=st.floats(0.2, 0.8),
    across=st.booleans(),
)
def test_the_edge_of_a_mask_comes_back_exactly_at_any_aspect_ratio(
    mode: str, width: int, height: int, coarse: int, place: float, across: bool
) -> None:
    """Interpolation keeps what is linear, so logits that rise along an axis cross zero where the transform says."""
    side = 128
    transform = MODES[mode]((width, height), (side, side))
    size = (width, height)[0 if across else 1]
    edge = place * size
    origin, one = transform.apply_boxes([(0, 0, 0, 0), (1, 1, 1, 1)])[:, 0 if across else 1].tolist()
    there = origin + (one - origin) * edge
    centres = (torch.arange(side // coarse) + 0.5) * coarse - there
    logits = centres[None, :].expand(len(centres), -1) if across else centres[:, None].expand(-1, len(centres))
    mask = transform.invert_mask(logits)
    assert mask.shape == (height, width)
    wanted = torch.arange(size) + 0.5 > edge
    found = mask[0] if across else mask[:, 0]
    near = (torch.arange(size) + 0.5 - edge).abs() < 1e-3
    # The outermost cells' logits hold on to the border, which shifts an edge that lies among them.
    border = coarse / (one - origin) + 1
    if border < edge < size - border:
        assert torch.equal(found[~near], wanted[~near])
        assert (mask == (mask[:1] if across else mask[:, :1])).all()


@pytest.mark.parametrize("coarse", [1, 2, 4])
def test_a_frame_that_shows_the_image_alone_is_inverted_in_one_step(coarse: int) -> None:
    torch.manual_seed(0)
    transform = GeometricTransform.resize((50, 30), (64, 64))
    logits = torch.randn(64 // coarse, 64 // coarse)
    once = torch.nn.functional.interpolate(logits[None, None], (30, 50), mode="bilinear", align_corners=False)[0, 0] > 0
    assert torch.equal(transform.invert_mask(logits, directly=True), once)
    padded = GeometricTransform.letterbox((50, 30), (64, 64))
    assert torch.equal(padded.invert_mask(logits, directly=True), padded.invert_mask(logits))
