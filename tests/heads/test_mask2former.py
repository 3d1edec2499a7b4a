"""Mask2Former: transformers' own masks while nothing has crossed, its matching costs, and sets that are learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerHungarianMatcher,
    Mask2FormerLoss,
    dice_loss,
)

from heads.masks import Mask2FormerHead
from layers.calls import HeadContext, MaskResult, MasksResult
from tests.heads.experts import MASK2FORMER, awake, seen

STATE = 12
CLASSES = ["cat", "dog", "cow"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with three classes and its processor, as transformers saves them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mask2former")
    names: dict[str, Any] = {"id2label": dict(enumerate(CLASSES)), "label2id": {n: i for i, n in enumerate(CLASSES)}}
    model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**MASK2FORMER, **names))
    awake(model).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def theirs(directory: Path, context: HeadContext) -> Any:
    model = Mask2FormerForUniversalSegmentation.from_pretrained(directory).eval()
    processor = Mask2FormerImageProcessor.from_pretrained(directory)
    inputs = processor(images=context.image.load_original(), return_tensors="pt")
    with torch.no_grad():
        return model(pixel_values=inputs["pixel_values"])


@pytest.mark.parametrize("size", [(40, 20), (9, 31), (64, 64)])
@pytest.mark.parametrize("link", ["text", "hidden"])
def test_a_pretrained_model_begins_as_it_was(directory: Path, size: tuple[int, int], link: Any) -> None:
    context = seen(size, "cow; cat")
    head = Mask2FormerHead(STATE, str(directory), classes="pretrained", threshold=0.0, link=link).eval()
    output = theirs(directory, context)
    states = None if link == "text" else torch.randn(2, STATE)
    with torch.no_grad():
        predictions = head(states, [2], [context])
        (result,) = head.decode(predictions, [context])
    torch.testing.assert_close(predictions.masks[-1], output.masks_queries_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(predictions.logits[-1][0], output.class_queries_logits[0], atol=1e-4, rtol=1e-4)
    assert isinstance(result, MasksResult) and len(result.masks) == MASK2FORMER["num_queries"]
    probability, chosen = output.class_queries_logits[0].softmax(-1)[:, [2, 0]].max(-1)
    masks = output.masks_queries_logits[0]
    sure = torch.stack([mask.sigmoid()[mask > 0].mean() if (mask > 0).any() else mask.sum() * 0 for mask in masks])
    order = (probability * sure).argsort(descending=True)
    assert result.scores == pytest.approx((probability * sure)[order].tolist(), abs=1e-4)
    assert list(result.labels) == [("cow", "cat")[index] for index in chosen[order].tolist()]
    scaled = torch.nn.functional.interpolate(masks[None], size[::-1], mode="bilinear", align_corners=False)[0] > 0
    assert (result.masks == scaled[order]).float().mean() > 0.999  # a logit of 0 may fall to either side


def test_matching_costs_are_those_of_transformers_matcher() -> None:
    """On the whole masks instead of random points: where a mask is constant, points cannot differ from the whole."""
    torch.manual_seed(0)
    head = Mask2FormerHead(STATE, config=MASK2FORMER)
    logits, levels = torch.randn(5, 4), torch.randn(5)
    masks = levels[:, None, None].expand(5, 8, 8).contiguous()
    wanted = torch.tensor([1.0, 0.0, 1.0])[:, None, None].expand(3, 8, 8).contiguous()
    labels = torch.tensor([2, 0, 1])
    matcher = Mask2FormerHungarianMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=64)
    ((rows, columns),) = matcher(masks[None], logits[None], [wanted], [labels])
    ours = linear_sum_assignment(head.matching_cost(logits, masks, labels, wanted).numpy())
    assert rows.tolist() == ours[0].tolist() and columns.tolist() == ours[1].tolist()
    loss = Mask2FormerLoss(Mask2FormerConfig(id2label=dict(enumerate("abc"))), {})
    expected = loss.loss_labels(logits[None], [labels], [(rows, columns)])["loss_cross_entropy"]
    found = head._call_loss(logits, masks, {"labels": labels, "masks": wanted})
    assert float(found["class"]) == pytest.approx(2 * float(expected), rel=1e-5)
    inside, truth = masks[rows].flatten(1), wanted[columns].flatten(1)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(inside, truth, reduction="none").mean(1).sum() / 3
    assert float(found["bce"]) == pytest.approx(5 * float(bce), rel=1e-5)
    assert float(found["dice"]) == pytest.approx(5 * float(dice_loss(inside, truth, 3)), rel=1e-5)


def test_what_is_frozen_stays_and_what_crosses_is_learned() -> None:
    """One picture, dark at the left and bright at the right, two calls: what crosses says which half is meant."""
    torch.manual_seed(0)
    head = awake(Mask2FormerHead(STATE, config=MASK2FORMER, image_size=(64, 64), instances=False), 0.05).train()
    contexts = [seen((32, 32), ""), seen((32, 32), "")]
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, :, :16], masks[1, :, 16:] = True, True
    picture = (masks[1] * 255).to(torch.uint8).expand(3, 32, 32).contiguous()
    for context in contexts:
        context.image.load_original = lambda: picture
    layouts = [contexts[0].image.layout]
    targets = [head.target_processor.for_call(contexts[0].call)(mask, layouts) for mask in masks]
    states = torch.randn(2, STATE, requires_grad=True)
    optimizer = torch.optim.Adam([p for p in head.parameters() if p.requires_grad], lr=3e-3)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        term = head.loss(head(states, [1, 1], contexts), targets)
        term.total.backward()
        losses.append(float(term.total.detach()))
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]
    assert states.grad is not None and (states.grad.abs().sum(1) > 0).all()
    changed = {name for name, value in head.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not any("pixel_level_module" in name for name in changed)
    assert head.cache.misses == 1
    with torch.no_grad():
        results = head.eval().decode(head(states, [1, 1], contexts), contexts)
    for result, mask in zip(results, masks, strict=True):
        assert isinstance(result, MaskResult)
        assert (result.mask & mask).sum() / (result.mask | mask).sum() > 0.8


def test_a_call_that_wants_nothing_teaches_every_query_to_be_none() -> None:
    head = Mask2FormerHead(STATE, config=MASK2FORMER, image_size=(64, 64))
    context = seen((40, 20), "cat; dog")
    target = head.target_processor.for_call(context.call)([], [context.image.layout])
    assert target["masks"].shape == (0, 16, 16) and target["labels"].shape == (0,)
    term = head.loss(head(torch.randn(1, STATE), [1], [context]), [target])
    assert float(term.parts["bce"]) == float(term.parts["dice"]) == 0 < float(term.parts["class"])
    term.total.backward()


def test_what_is_wrong_with_the_arguments_is_said(directory: Path) -> None:
    with pytest.raises(ValueError, match="expected pretrained or config"):
        Mask2FormerHead(STATE)
    with pytest.raises(ValueError, match="classes: expected a list, or 'pretrained' with a checkpoint"):
        Mask2FormerHead(STATE, config=MASK2FORMER, classes="pretrained")
    head = Mask2FormerHead(STATE, str(directory), classes="pretrained").eval()
    context = seen((40, 20), "zebra")
    with pytest.raises(ValueError, match=r"task 'seg': expected one of \['cat', 'dog', 'cow'\], got 'zebra'"):
        head.decode(head(torch.zeros(1, STATE), [1], [context]), [context])
