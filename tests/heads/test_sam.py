"""SAM and SAM 2: our head answers as transformers' models do, sees an image once, and learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Sam2Config,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2Processor,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SamProcessor,
)

from heads.masks import SamMaskHead
from heads.masks.targets import ExpertMaskProcessor
from layers.calls import MaskResult, MasksResult
from layers.geometry import GeometricTransform
from layers.head import Link
from layers.layout import ItemLayout
from tests.heads.experts import SAM, SAM2, awake, seen

STATE = 12
FAMILIES: dict[str, Any] = {"sam": (SamModel, SamConfig, SAM), "sam2": (Sam2Model, Sam2Config, SAM2)}
SIZES = [(40, 20), (33, 57), (64, 64), (128, 128), (200, 9), (7, 120)]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def directory(family: str, tmp_path: Path) -> Path:
    """A tiny random model and its processor, as transformers saves them."""
    torch.manual_seed(0)
    model, config, arguments = FAMILIES[family]
    made = model(config(**arguments))
    awake(made).save_pretrained(tmp_path / family)
    processor(family).save_pretrained(tmp_path / family)
    return tmp_path / family


def processor(family: str) -> Any:
    if family == "sam2":
        return Sam2Processor(
            Sam2ImageProcessor(size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16})
        )
    pads = {"pad_size": {"height": 64, "width": 64}, "mask_pad_size": {"height": 32, "width": 32}}
    return SamProcessor(SamImageProcessor(size={"longest_edge": 64}, mask_size={"longest_edge": 32}, **pads))


def theirs(directory: Path, family: str, picture: torch.Tensor, **prompts: Any) -> Any:
    """Masks of the original size, and their scores, by transformers alone."""
    model = FAMILIES[family][0].from_pretrained(directory).eval()
    own = processor(family)
    inputs = own(images=picture, return_tensors="pt", **prompts)
    sizes = {name: inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes") if name in inputs}
    with torch.no_grad():
        output = model(**inputs, multimask_output=False)
    return own.post_process_masks(output.pred_masks, *sizes.values())[0], output.iou_scores


@pytest.mark.parametrize("size", SIZES)
def test_masks_of_boxes_are_transformers_own_at_any_aspect_ratio(
    directory: Path, family: str, size: tuple[int, int]
) -> None:
    width, height = size
    boxes = [(0.1 * width, 0.2 * height, 0.7 * width, 0.9 * height), (0.0, 0.0, float(width), float(height))]
    context = seen(size, regions=boxes)
    head = SamMaskHead(STATE, str(directory), link="boxes", instances=True).eval()
    with torch.no_grad():
        (result,) = head.decode(head(None, [0], [context]), [context])
    masks, scores = theirs(directory, family, context.image.load_original(), input_boxes=[[list(b) for b in boxes]])
    assert isinstance(result, MasksResult)
    order = sorted(range(2), key=lambda place: -float(scores[0, place, 0]))
    assert torch.equal(result.masks, masks[order, 0])
    assert result.scores == pytest.approx(scores[0, order, 0].clamp(0, 1).tolist(), abs=1e-5)


def test_masks_of_a_fixed_prompt_embedding_are_transformers_own(directory: Path, family: str) -> None:
    """The states become the very tokens that transformers' prompt encoder makes of two points."""
    context = seen((40, 20))
    head = SamMaskHead(STATE, str(directory)).eval()
    points = [[[[5.0, 6.0], [22.0, 9.0]]]]
    own = processor(family)(images=context.image.load_original(), input_points=points, return_tensors="pt")
    with torch.no_grad():
        tokens, _ = head.sam.model.prompt_encoder(
            input_points=own["input_points"].float(),
            input_labels=torch.ones(own["input_points"].shape[:3], dtype=torch.int),
            input_boxes=None,
            input_masks=None,
        )
        head.prompt = torch.nn.Identity()  # type: ignore[assignment]
        (result,) = head.decode(head(tokens[0, 0], [tokens.shape[2]], [context]), [context])
    masks, scores = theirs(directory, family, context.image.load_original(), input_points=points)
    assert isinstance(result, MaskResult) and 0 < int(masks.sum()) < masks.numel()
    assert torch.equal(result.mask, masks[0, 0])
    assert result.score == pytest.approx(float(scores.clamp(0, 1)), abs=1e-5)


def test_pixels_are_those_of_transformers_own_processor(directory: Path, family: str) -> None:
    head = SamMaskHead(STATE, str(directory))
    for size in SIZES:
        picture = seen(size).image.load_original()
        wanted = processor(family)(images=picture, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(head.sam.frame.pixels(picture), wanted, atol=1e-5, rtol=1e-5)


def test_what_is_frozen_stays_and_all_else_learns(family: str) -> None:
    torch.manual_seed(0)
    head = awake(SamMaskHead(STATE, config=FAMILIES[family][2], family=family).train(), 0.1)
    contexts = [seen((40, 20)), seen((24, 48), seed=1)]
    masks = [torch.zeros(20, 40, dtype=torch.bool), torch.zeros(48, 24, dtype=torch.bool)]
    masks[0][4:15, 5:30] = True
    masks[1][20:40, 2:20] = True
    targets = [
        head.target_processor(mask, [context.image.layout]) for mask, context in zip(masks, contexts, strict=True)
    ]
    states = torch.randn(2, STATE, requires_grad=True)
    optimizer = torch.optim.Adam([p for p in head.parameters() if p.requires_grad], lr=1e-2)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        term = head.loss(head(states, [1, 1], contexts), targets)
        term.total.backward()
        losses.append(float(term.total.detach()))
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0] and term.count == 2
    assert states.grad is not None and (states.grad.abs().sum(1) > 0).all()
    assert [name for name, p in head.named_parameters() if p.requires_grad and p.grad is None] == []
    changed = {name for name, value in head.state_dict().items() if not torch.equal(value, before[name])}
    allowed = ("prompt.", "sam.model.mask_decoder.")
    assert changed and all(name.startswith(allowed) for name in changed)
    assert not any(".conv_s" in name for name in changed), "what is computed once per image must not move"
    assert head.cache.misses == 2, "each image is encoded once"


def test_equal_images_are_encoded_once_and_the_oldest_forgotten() -> None:
    head = SamMaskHead(STATE, config=SAM, max_images=2).eval()
    same = [seen((40, 20)), seen((40, 20)), seen((40, 20), "blue 4")]
    with torch.no_grad():
        head(torch.randn(3, STATE), [1, 1, 1], same)
        assert head.cache.misses == 1
        for seed in (1, 2, 0):
            head(torch.randn(1, STATE), [1], [seen((40, 20), seed=seed)])
    assert head.cache.misses == 4
    assert not any("cache" in name for name in head.state_dict())


def test_what_a_session_has_seen_training_can_use_and_other_weights_are_not_served_old_maps() -> None:
    torch.manual_seed(0)
    head, context = awake(SamMaskHead(STATE, config=SAM), 0.1), seen((40, 20))
    with torch.inference_mode():
        head(torch.randn(1, STATE), [1], [context])
    states = torch.randn(1, STATE)
    head(states, [1], [context])[0].logits.sum().backward()
    assert head.cache.misses == 1
    other = awake(SamMaskHead(STATE, config=SAM), 0.1)
    head.load_state_dict(other.state_dict())
    with torch.no_grad():
        ours, theirs = (each.eval()(states, [1], [context])[0].logits for each in (head, other))
    torch.testing.assert_close(ours, theirs)
    head.double()
    with torch.no_grad():
        assert head(states.double(), [1], [context])[0].logits.dtype == torch.float64


def test_a_prompt_of_words_needs_no_states_and_gives_the_language_model_no_gradient() -> None:
    head = awake(SamMaskHead(STATE, config=SAM, link="text").eval())
    contexts = [seen((40, 20), "red 7"), seen((40, 20), "the large blue 4 at the left")]
    with torch.no_grad():
        together = head(None, [0, 0], contexts)
        alone = head(None, [0], contexts[1:])
    torch.testing.assert_close(together[1].logits, alone[0].logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(together[0].logits, together[1].logits, atol=1e-3)


@pytest.mark.parametrize("link", ["text", "boxes"])
def test_links_that_pass_no_states_are_said_to_the_generalist(link: Link) -> None:
    assert SamMaskHead(STATE, config=SAM, link=link).links == {link}


def test_several_boxes_are_one_mask_unless_instances_are_asked_for() -> None:
    torch.manual_seed(0)
    boxes = [(2.0, 2.0, 20.0, 18.0), (15.0, 1.0, 38.0, 12.0)]
    context = seen((40, 20), regions=boxes)
    head = SamMaskHead(STATE, config=SAM, link="boxes").eval()
    with torch.no_grad():
        predictions = head(None, [0], [context])
        (one,) = head.decode(predictions, [context])
        head.instances = True
        (several,) = head.decode(predictions, [context])
    assert isinstance(one, MaskResult) and isinstance(several, MasksResult)
    assert torch.equal(one.mask, several.masks.any(0)) and several.labels == ()


def test_a_target_survives_the_way_to_the_decoders_cells_and_back() -> None:
    """A rectangle on cell borders, at every aspect ratio and in both ways of fitting, comes back pixel by pixel."""
    for family in ("sam", "sam2"):
        head = SamMaskHead(STATE, config=FAMILIES[family][2], family=family)
        processor = head.target_processor
        assert isinstance(processor, ExpertMaskProcessor)
        for size in [(64, 64), (64, 32), (16, 64), (128, 64), (256, 32)]:
            transform = head.sam.frame.transform(size)
            mask = torch.zeros(size[1], size[0], dtype=torch.bool)
            mask[: size[1] // 2, : size[0] // 4] = True
            layout = ItemLayout((4, 4), size, GeometricTransform.letterbox(size, (32, 32)))
            target = processor(mask, [layout])
            again = transform.invert_mask(target["masks"][0] - 0.5)
            assert again.shape == mask.shape
            overlap = (again & mask).sum() / (again | mask).sum()
            assert overlap > 0.9, (family, size, float(overlap))
            covered = float(target["window"].mean())
            shown = 1.0 if family == "sam2" else min(size) / max(size)
            assert covered == pytest.approx(shown, abs=0.02)


def test_the_loss_is_two_bce_half_a_dice_and_the_error_of_the_overlap() -> None:
    head = SamMaskHead(STATE, config=SAM)
    context = seen((40, 20))
    mask = torch.zeros(20, 40, dtype=torch.bool)
    mask[3:17, 4:30] = True
    target = head.target_processor(mask, [context.image.layout])
    (prediction,) = head(torch.randn(1, STATE), [1], [context])
    term = head.loss([prediction], [target])
    inside, wanted = target["window"] > 0.5, target["masks"][0]
    assert set(target["window"].unique().tolist()) == {0.0, 1.0}, "this image ends at a cell's border"
    p = prediction.logits[0].detach()[inside].sigmoid()
    truth = wanted[inside]
    bce = -(truth * p.log() + (1 - truth) * (1 - p).log()).mean()
    dice = 1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
    cut, own = prediction.logits[0] > 0, wanted >= 0.5
    overlap = (cut & own).sum() / (cut | own).sum()
    error = (prediction.overlap[0].detach() - overlap).square()
    assert float(term.total.detach()) == pytest.approx(float(2 * bce + 0.5 * dice + 0.1 * error), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "context", "message"),
    [
        ({"link": "boxes"}, {}, "task 'seg': expected a region"),
        ({"link": "boxes"}, {"regions": [(30.0, 5.0, 10.0, 15.0)]}, r"region 0 of task 'seg': expected 0 <= x1 <= x2"),
    ],
)
def test_what_cannot_be_a_prompt_is_refused(arguments: Any, context: Any, message: str) -> None:
    head = SamMaskHead(STATE, config=SAM, **arguments)
    with pytest.raises(ValueError, match=message):
        head(None, [0], [seen((40, 20), **context)])


def test_what_is_wrong_with_the_arguments_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected pretrained or config"):
        SamMaskHead(STATE)
    with pytest.raises(ValueError, match="expected a SAM or a SAM 2, got 'clip'"):
        (tmp_path / "config.json").write_text('{"model_type": "clip"}')
        SamMaskHead(STATE, str(tmp_path))
    with pytest.raises(ValueError, match=r"expected a mask of 40x20 pixels like its image, got 20x40"):
        SamMaskHead(STATE, config=SAM).target_processor(torch.zeros(40, 20), [seen((40, 20)).image.layout])
    context = seen((40, 20))
    context.media[0].load_original = None
    with pytest.raises(ValueError, match="its head reads the original image, which is not at hand"):
        SamMaskHead(STATE, config=SAM)(torch.zeros(1, STATE), [1], [context])
    context.media.clear()
    with pytest.raises(ValueError, match="needs an image, the conversation has none"):
        SamMaskHead(STATE, config=SAM)(torch.zeros(1, STATE), [1], [context])
