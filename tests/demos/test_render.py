from __future__ import annotations

import numpy as np
import pytest
import torch

from demos.render import PALETTE, draw_boxes, enlargement, overlay_mask, overlay_masks, tight_box, to_pil


def test_a_box_is_outlined_where_it_says():
    image = torch.zeros(3, 100, 200, dtype=torch.uint8)
    drawing = np.array(draw_boxes(image, [(20.0, 10.0, 60.0, 50.0)]))
    factor = enlargement(200, 100)
    assert drawing.shape == (100 * factor, 200 * factor, 3)
    rows, columns = np.nonzero((drawing == PALETTE[0]).all(-1))
    assert (columns.min(), rows.min()) == (20 * factor, 10 * factor)
    assert (columns.max(), rows.max()) == (60 * factor - 1, 50 * factor - 1)
    assert not (drawing[30 * factor, 40 * factor] == PALETTE[0]).all(), "the inside stays visible"


@pytest.mark.parametrize("box", [(0.0, 0.0, 64.0, 64.0), (5.0, 5.0, 5.0, 5.0), (63.9, 63.9, 64.0, 64.0)])
def test_boxes_at_the_edges_and_without_area_are_drawn(box):
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    assert np.array(draw_boxes(image, [box], ["a long label <with> [markup]"])).any()


def test_a_mask_tints_its_pixels_only():
    image = torch.full((3, 400, 400), 200, dtype=torch.uint8)
    mask = torch.zeros(400, 400, dtype=torch.bool)
    mask[100:200, 50:80] = True
    drawing = np.array(overlay_mask(image, mask)).astype(int)
    redder = drawing[..., 0] > drawing[..., 1] + 20
    assert np.array_equal(redder, mask.numpy())


def test_several_masks_are_tinted_apart_and_boxed():
    image = torch.full((3, 400, 400), 128, dtype=torch.uint8)
    masks = torch.zeros(2, 400, 400, dtype=torch.bool)
    masks[0, 100:200, 50:80] = True
    masks[1, 150:300, 60:200] = True
    assert tight_box(masks[0]) == (50, 100, 80, 200) and tight_box(masks[0] & ~masks[0]) == (0, 0, 0, 0)
    drawing = np.array(overlay_masks(image, masks, ["red 7 0.90", "blue 4 0.80"])).astype(int)
    tints = [np.round(0.45 * 128 + 0.55 * np.array(colour)) for colour in PALETTE[:2]]
    assert np.abs(drawing[180, 70] - tints[0]).max() <= 1, "the best one lies on top"
    assert np.abs(drawing[250, 150] - tints[1]).max() <= 1
    assert (drawing[350, 350] == round(0.6 * 128 + 0.4 * 32)).all()
    assert (drawing[100, 79] == PALETTE[0]).all() and (drawing[299, 100] == PALETTE[1]).all()


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(8, 9\).*\(9, 8\)"):
        overlay_mask(torch.zeros(3, 8, 9, dtype=torch.uint8), torch.zeros(9, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(8, 9\).*\(9, 8\)"):
        overlay_masks(torch.zeros(3, 8, 9, dtype=torch.uint8), torch.zeros(2, 9, 8, dtype=torch.bool))


def test_a_mask_is_written_losslessly(tmp_path):
    mask = torch.rand(13, 17) > 0.5
    to_pil(mask).save(tmp_path / "mask.png")
    from PIL import Image

    assert np.array_equal(np.array(Image.open(tmp_path / "mask.png")) == 255, mask.numpy())
