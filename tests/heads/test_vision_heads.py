"""Boxes, masks and images: frames, losses against independent formulas, and refused targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from heads.attend import Relevance, StateReader
from heads.boxes import BoxHead, BoxPredictions, BoxTargetProcessor
from heads.frames import ImageTargetProcessor
from heads.image import FlowConditions, FlowImageHead
from heads.masks import MaskHead, MaskTargetProcessor
from layers.calls import BoxesResult, Call, HeadContext, ImageResult, MaskResult, MediaFeatures, Region
from layers.geometry import GeometricTransform
from layers.layout import ItemLayout

LETTERBOX = GeometricTransform.letterbox((96, 48), (64, 64))
LAYOUT = ItemLayout((16, 16), (96, 48), LETTERBOX)


def context(task: str = "ground", transform: GeometricTransform = LETTERBOX, **media: Any) -> HeadContext:
    layout = ItemLayout((16, 16), transform.original_size, transform)
    pixels = media.pop("pixels", torch.full((3, 64, 64), 128, dtype=torch.uint8))
    item = MediaFeatures("image", torch.randn(256, 8), layout, {"pixel_values": pixels}, **media)
    return HeadContext(Call(task, "blue", (Region((0.25, 0.25, 0.5, 0.5)),)), [item])


def test_a_box_survives_target_processing_and_decoding_of_a_letterboxed_image() -> None:
    box = (10.0, 5.0, 70.0, 40.0)
    target = BoxTargetProcessor()(box, [LAYOUT])["boxes_xyxy"]
    x1, y1, x2, y2 = target.tolist()
    cxcywh = torch.tensor([[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]])
    predictions = BoxPredictions(cxcywh, torch.zeros(1, 4).log_softmax(-1), torch.rand(1, 4, 2))
    result = BoxHead(8, 8, width=8).decode(predictions, [context()])[0]
    assert isinstance(result, BoxesResult)
    assert result.boxes_xyxy[0] == pytest.approx(box, abs=1e-3)


def test_the_box_loss_is_five_l1_two_giou_and_the_attention_outside() -> None:
    predictions = BoxPredictions(
        torch.tensor([[0.25, 0.5, 0.5, 1.0]]),  # the left half of the frame
        torch.tensor([[0.7, 0.1, 0.2]]).log(),
        torch.tensor([[[0.6, 0.5], [0.9, 0.5], [0.1, 0.5]]]),
    )
    term = BoxHead(8, 8, width=8).loss(predictions, [{"boxes_xyxy": torch.tensor([0.25, 0.0, 0.75, 1.0])}])
    assert float(term.parts["l1"]) == pytest.approx(0.25)
    assert float(term.parts["giou"]) == pytest.approx(1 - 1 / 3, abs=1e-5)  # the hull is the union
    assert float(term.parts["heat"]) == pytest.approx(-torch.tensor(0.7).log().item())
    assert float(term.total) == pytest.approx(5 * 0.25 + 2 * 2 / 3 - torch.tensor(0.7).log().item(), abs=1e-5)


def test_a_box_that_holds_no_feature_pulls_the_nearest_real_one() -> None:
    heat = torch.tensor([[0.5, 0.5, 0.0]]).log()  # the third feature is padding
    predictions = BoxPredictions(torch.full((1, 4), 0.1), heat, torch.tensor([[[0.3, 0.3], [0.9, 0.9], [0.0, 0.0]]]))
    term = BoxHead(8, 8, width=8).loss(predictions, [{"boxes_xyxy": torch.tensor([0.0, 0.0, 0.01, 0.01])}])
    assert float(term.parts["heat"]) == pytest.approx(-torch.tensor(0.5).log().item())


@pytest.mark.parametrize("box", [[0, 0, 97, 10], [5, 5, 5, 9], [-1, 0, 4, 4]])
def test_a_box_outside_its_image_is_refused(box: list[int]) -> None:
    with pytest.raises(ValueError, match="96x48"):
        BoxTargetProcessor()(box, [LAYOUT])


def test_several_boxes_and_missing_images_are_refused() -> None:
    with pytest.raises(ValueError, match="4 numbers"):
        BoxTargetProcessor()([[0, 0, 1, 1], [0, 0, 2, 2]], [LAYOUT])
    with pytest.raises(ValueError, match="needs an image"):
        BoxTargetProcessor()([0, 0, 1, 1], [])


def test_a_mask_survives_target_processing_and_decoding_of_a_letterboxed_image() -> None:
    mask = torch.zeros(48, 96, dtype=torch.bool)
    mask[12:36, 30:60] = True
    target = MaskTargetProcessor()(mask, [LAYOUT])["mask"]
    assert target.shape == (64, 64) and not target[:16].any()
    logits = torch.where(target, 5.0, -5.0)
    result = MaskHead(8, 8, width=8).decode([logits], [context("seg")])[0]
    assert isinstance(result, MaskResult)
    assert (result.mask & mask).sum() / (result.mask | mask).sum() > 0.95


def test_a_mask_of_another_size_is_refused_naming_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"expected a mask of 96x48 .* got 48x96"):
        MaskTargetProcessor()(torch.zeros(96, 48, dtype=torch.bool), [LAYOUT])


def test_the_mask_loss_matches_its_formula() -> None:
    logits, wanted = torch.randn(6, 4, dtype=torch.float64).float(), torch.rand(6, 4) > 0.5
    term = MaskHead(8, 8, width=8).loss([logits, logits], [{"mask": wanted}, {"mask": wanted}])
    p = logits.sigmoid()
    bce = -torch.where(wanted, p, 1 - p).log().mean()
    dice = 1 - (2 * p[wanted].sum() + 1) / (p.sum() + wanted.sum() + 1)
    assert float(term.total) == pytest.approx(2 * float(2 * bce + 0.5 * dice), rel=1e-5)


def test_padding_does_not_change_what_a_reader_reads() -> None:
    torch.manual_seed(0)
    reader = StateReader(8, 8, 16, 2, 2)
    states, small, large = torch.randn(2, 8), torch.randn(4, 8), torch.randn(9, 8)
    both = reader(states, [1, 1], [small, large], [(2, 2), (3, 3)])
    alone = reader(states[:1], [1], [small], [(2, 2)])
    torch.testing.assert_close(both.query[:1], alone.query)
    relevance = Relevance(16)
    torch.testing.assert_close(relevance(both)[:1, :4], relevance(alone))
    assert relevance(both)[0, 4:].isinf().all()


def flow(**arguments: Any) -> FlowImageHead:
    return FlowImageHead(8, 8, num_queries=2, canvas_size=(8, 8), channels=(8, 16), num_steps=3, **arguments)


def test_an_edit_without_flow_returns_its_source_in_the_original_frame() -> None:
    head = flow(source_noise=0.0)
    for parameter in head.flow.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    original = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    edit = context("edit", GeometricTransform.identity((64, 64)), pixels=original)
    result = head.decode(head(torch.randn(2, 8), [2], [edit]), [edit])[0]
    assert isinstance(result, ImageResult)
    assert torch.equal(result.image, original)


def test_what_a_crop_removed_keeps_its_original_pixels() -> None:
    original = torch.randint(0, 256, (3, 48, 96), dtype=torch.uint8)
    transform = GeometricTransform.center_crop((96, 48), (64, 64))
    edit = context("edit", transform, load_original=lambda: original)
    result = flow().decode(flow()(torch.randn(2, 8), [2], [edit]), [edit])[0]
    assert isinstance(result, ImageResult)
    assert torch.equal(result.image[:, :, :24], original[:, :, :24])
    assert torch.equal(result.image[:, :, 72:], original[:, :, 72:])


def test_the_region_of_a_call_reaches_its_channel() -> None:
    head = flow()
    maps = head(torch.randn(2, 8), [2], [context("edit")]).maps[0]
    region = torch.zeros(64, 64)
    region[16:32, 16:32] = 1
    assert torch.equal(maps[3], region)


def test_a_drawing_learns_from_several_times_spread_over_the_flow() -> None:
    head = flow(num_draws=4)
    seen: list[torch.Tensor] = []

    def image_at_its_time(sample: torch.Tensor, time: torch.Tensor, *_: Any) -> torch.Tensor:
        seen.append(time)
        return time[:, None, None, None].expand_as(sample)

    head._image = image_at_its_time  # type: ignore[method-assign]
    targets = [{"canvas": torch.full((3, 8, 8), value)} for value in (0.0, 0.5)]
    states = head(torch.randn(4, 8), [2, 2], [HeadContext(Call("draw", "red 3"))] * 2)
    total = head.loss(states, targets).total
    (times,) = seen
    assert [int(time * 4) for time in times.tolist()] == [0, 1, 2, 3] * 2
    expected = (times.unflatten(0, (2, 4)) - torch.tensor([[0.0], [0.5]])).square().mean(dim=1).sum()
    torch.testing.assert_close(total, expected)


def test_sampling_ends_in_the_expected_image() -> None:
    head = flow()
    image = torch.rand(3, 8, 8) * 2 - 1
    head._image = lambda sample, *_: image.expand_as(sample)  # type: ignore[method-assign]
    drawing = HeadContext(Call("draw", "red 3"))
    embedding = torch.zeros(1, head.sketch.in_features)
    conditions = FlowConditions(embedding, [head._draw_maps(embedding[0])], [None])
    result = head.decode(conditions, [drawing])[0]
    assert isinstance(result, ImageResult)
    assert (result.image.float() - (image + 1) * 127.5).abs().max() <= 0.51


def test_a_drawing_goes_beyond_what_is_expected_without_its_states() -> None:
    head = flow(guidance=3.0)
    with torch.no_grad():
        head.no_condition.fill_(0.25)

    def image_of_its_states(
        sample: torch.Tensor, time: torch.Tensor, maps: torch.Tensor, embedding: torch.Tensor
    ) -> torch.Tensor:
        assert torch.equal(maps[0], head._draw_maps(embedding[0]))  # the sketch is that of the same states
        return embedding[:, :1, None, None].expand_as(sample)

    head._image = image_of_its_states  # type: ignore[method-assign]
    embedding = torch.full((2, head.sketch.in_features), 0.5)
    conditions = FlowConditions(embedding, [head._draw_maps(row) for row in embedding], [None, None])
    drawings = [HeadContext(Call("draw", "red 3")), HeadContext(Call("draw", "red 3"), parameters={"guidance": 1})]
    guided, plain = (result.image for result in head.decode(conditions, drawings) if isinstance(result, ImageResult))
    assert guided.unique().tolist() == [255] and plain.unique().tolist() == [191]  # .25 + 3 * (.5 - .25), and .5


def test_drawings_and_edits_of_one_size_are_decoded_apart() -> None:
    torch.manual_seed(0)
    head = FlowImageHead(8, 8, num_queries=2, canvas_size=(64, 64), channels=(8, 16), num_steps=2).eval()
    edit, drawing = context("edit"), HeadContext(Call("draw", "red 3"))
    states = torch.randn(4, 8)
    both = head.decode(head(states, [2, 2], [edit, drawing]), [edit, drawing])
    for place, one in enumerate((edit, drawing)):
        (alone,) = head.decode(head(states[2 * place : 2 * place + 2], [2], [one]), [one])
        assert isinstance(alone, ImageResult) and isinstance(both[place], ImageResult)
        assert (alone.image.int() - both[place].image.int()).abs().max() <= 1


def test_drawings_learn_now_and_then_without_their_states() -> None:
    drawing, targets = [HeadContext(Call("draw", "red 3"))], [{"canvas": torch.rand(3, 8, 8)}]
    states = torch.randn(2, 8)

    def reached(head: FlowImageHead) -> bool:
        head.loss(head(states, [2], drawing), targets).total.backward()
        return head.no_condition.grad is not None and bool(head.no_condition.grad.any())

    torch.manual_seed(0)
    assert reached(flow(num_draws=64, condition_dropout=0.5))
    assert not reached(flow(num_draws=64, condition_dropout=0.5).eval())
    assert not reached(flow(num_draws=64, condition_dropout=0.0, guidance=1.0))
    with pytest.raises(ValueError, match="needs draws without the states"):
        flow(condition_dropout=0.0)
    with pytest.raises(ValueError, match="share from 0 to below 1, got 1"):
        flow(condition_dropout=1)


def test_noise_depends_on_the_seed_and_the_call_only() -> None:
    head = flow()
    red, blue = HeadContext(Call("draw", "red 3")), HeadContext(Call("draw", "blue 3"))
    other_seed = HeadContext(Call("draw", "red 3"), parameters={"seed": 1})
    noise = head._noise(red, (8, 8))
    assert torch.equal(noise, head._noise(HeadContext(Call("draw", "red 3")), (8, 8)))
    assert not torch.equal(noise, head._noise(blue, (8, 8)))
    assert not torch.equal(noise, head._noise(other_seed, (8, 8)))


def test_targets_of_edits_that_are_no_picture_or_have_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        ImageTargetProcessor((8, 8))(torch.zeros(3, 8, 8), [])
    head, edit = flow(), context("edit")
    target = head.target_processor(torch.zeros(3, 20, 20, dtype=torch.uint8), [LAYOUT])
    with pytest.raises(ValueError, match="original size of the image"):
        head.loss(head(torch.randn(2, 8), [2], [edit]), [target])


def test_the_prompts_states_reach_the_flow() -> None:
    head = flow()
    queries, prompt = torch.randn(2, 8), torch.randn(3, 8, requires_grad=True)
    without = head(queries, [2], [context("draw")]).embedding
    given = head(torch.cat([prompt, queries]), [5], [context("draw")]).embedding
    assert not torch.allclose(given, without)
    given.sum().backward()
    assert (prompt.grad.abs().sum(dim=1) > 0).all()


def test_an_image_head_refuses_another_number_of_states_and_a_missing_source() -> None:
    with pytest.raises(ValueError, match="reads at least 2 states per call, got 1"):
        flow()(torch.randn(1, 8), [1], [context("edit")])
    with pytest.raises(ValueError, match="needs an image"):
        flow()(torch.randn(2, 8), [2], [HeadContext(Call("edit", "7 red"))])
