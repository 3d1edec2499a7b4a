"""Set prediction: transformers' DETR matcher and loss on the same outputs, labels by phrases, lists that are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.ops import box_convert
from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

from eval.metrics.detection import coco_average_precision
from heads.boxes import BoxSetHead, BoxSetTargetProcessor
from heads.boxes.matching import SetTarget, SetWeights, assign, matching_cost, set_loss
from heads.boxes.sets import BoxSets
from heads.phrases import class_index, phrases_of
from layers.calls import BoxesResult, Call, HeadContext, MediaFeatures
from layers.geometry import GeometricTransform
from layers.layout import ItemLayout

STATE, FEATURE = 12, 16


def predictions(count: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes + 1, generator=generator) * 2
    return logits, torch.rand(count, 4, generator=generator) * 0.5 + 0.1


@pytest.mark.parametrize(("count", "wanted"), [(9, 4), (9, 0), (3, 5), (1, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_matching_and_loss_are_transformers_own(count: int, wanted: int, seed: int) -> None:
    logits, boxes = predictions(count, 3, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    target = SetTarget(
        torch.randint(0, 3, (wanted,), generator=generator), torch.rand(wanted, 4, generator=generator) * 0.4 + 0.2
    )
    weights = SetWeights()
    theirs = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    outputs = {"logits": logits[None], "pred_boxes": boxes[None]}
    labels = [{"class_labels": target.labels, "boxes": target.boxes_cxcywh}]
    ((rows, columns),) = theirs(outputs, labels)
    ours = assign(matching_cost(logits, boxes, target, weights))
    assert torch.equal(ours[0], rows) and torch.equal(ours[1], columns)
    criterion = ImageLoss(theirs, num_classes=3, eos_coef=0.1, losses=["labels", "boxes"])
    expected = criterion(outputs, labels)
    found = set_loss(logits, boxes, target, weights)
    assert float(found["class"]) == pytest.approx(float(expected["loss_ce"]), rel=1e-5)
    assert float(found["l1"]) == pytest.approx(5 * float(expected["loss_bbox"]), rel=1e-5, abs=1e-6)
    assert float(found["giou"]) == pytest.approx(2 * float(expected["loss_giou"]), rel=1e-5, abs=1e-6)


def test_what_is_not_finite_is_matched_last() -> None:
    cost = torch.tensor([[float("nan"), float("inf")], [1.0, 2.0], [3.0, 0.0]])
    rows, columns = assign(cost)
    assert rows.tolist() == [1, 2] and columns.tolist() == [0, 1]


def scene(objects: list[tuple[int, int, int]], prompt: str = "red; blue") -> tuple[HeadContext, list[dict[str, Any]]]:
    """A picture of 64 x 48 seen letterboxed as 8 x 8 cells of 8 pixels, and the boxes of its objects.

    An object, (column, row, colour) with columns and rows of 24 pixels, covers 3 x 3 cells; the features of its cells
    say its colour, the more beside what all cells have the nearer they are to its middle.
    """
    transform = GeometricTransform.letterbox((64, 48), (64, 64))
    features = torch.zeros(8, 8, FEATURE)
    features[..., -1] = 1.0
    wanted = []
    for column, row, colour in objects:
        for y in range(3):
            for x in range(3):
                features[3 * row + y + 1, 3 * column + x, colour] = 1 / (1 + abs(x - 1) + abs(y - 1))
        box = [24.0 * column, 24.0 * row, 24.0 * column + 24, 24.0 * row + 24]
        wanted.append({"box_xyxy": box, "label": ("red", "blue")[colour]})
    media = MediaFeatures("image", features.flatten(0, 1), ItemLayout((8, 8), (64, 48), transform))
    return HeadContext(Call("detect", prompt), [media]), wanted


def decoded(head: BoxSetHead, logits: torch.Tensor, classes: list[str], prompt: str = "red; blue") -> BoxesResult:
    boxes = box_convert(torch.tensor([[0.0, 0.25, 0.5, 0.5], [0.25, 0.5, 1.0, 0.75]]), "xyxy", "cxcywh")
    context, _ = scene([], prompt)
    (result,) = head.decode(BoxSets([[logits]], [[boxes]], [classes]), [context])
    assert isinstance(result, BoxesResult)
    return result


def test_lists_are_sorted_labelled_and_in_original_pixels_and_phrases_get_their_best_box() -> None:
    certain = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05]]).log()
    head = BoxSetHead(STATE, FEATURE, width=16, num_layers=1)
    result = decoded(head, certain, ["red", "blue"])
    assert result.labels == ("blue", "red") and result.scores == pytest.approx((0.9, 0.7))
    assert result.boxes_xyxy[0] == pytest.approx((16, 24, 64, 40))  # the letterbox of 64 x 48 begins at row 8
    assert result.boxes_xyxy[1] == pytest.approx((0, 8, 32, 24))
    assert decoded(head, torch.tensor([[0.4, 0.1, 0.5], [0.05, 0.45, 0.5]]).log(), ["red", "blue"]).boxes_xyxy == ()
    head.max_boxes = 1
    assert decoded(head, certain, ["red", "blue"]).labels == ("blue",)
    grounding = BoxSetHead(STATE, FEATURE, width=16, num_layers=1, answer="best")
    unsure = torch.tensor([[0.2, 0.1, 0.7], [0.1, 0.15, 0.75]]).log()
    result = decoded(grounding, unsure, ["red", "blue"])
    assert result.labels == ("red", "blue") and result.scores == pytest.approx((0.2, 0.15))


def test_a_closed_vocabulary_needs_no_phrases() -> None:
    head = BoxSetHead(STATE, FEATURE, ["cat", "dog", "cow"], width=16, num_layers=1, threshold=0.0)
    context, _ = scene([(0, 0, 0)], "")
    with torch.no_grad():
        (result,) = head.decode(head(torch.randn(1, STATE), [1], [context]), [context])
    assert isinstance(result, BoxesResult) and set(result.labels) <= {"cat", "dog", "cow"}
    assert not hasattr(head, "phrases")
    with pytest.raises(ValueError, match="classes must be different names"):
        BoxSetHead(STATE, FEATURE, ["cat", "cat"])


def test_targets_are_fractions_and_class_indices() -> None:
    context, _ = scene([], "a red car;the  dog ; ")
    processor = BoxSetTargetProcessor().for_call(context.call)
    items = [{"box_xyxy": [0, 0, 32, 24], "label": "the dog"}, {"box_xyxy": [32, 0, 64, 48], "label": "A RED car"}]
    target = processor(items, [context.image.layout])
    assert target["labels"].tolist() == [1, 0]
    torch.testing.assert_close(target["boxes_cxcywh"][0], torch.tensor([0.25, 0.3125, 0.5, 0.375]))
    empty = processor([], [context.image.layout])
    assert empty["boxes_cxcywh"].shape == (0, 4) and empty["labels"].shape == (0,)
    with pytest.raises(ValueError, match=r"box label: expected one of \['a red car', 'the dog'\], got 'cow'"):
        processor([{"box_xyxy": [0, 0, 4, 4], "label": "cow"}], [context.image.layout])
    with pytest.raises(ValueError, match="64x48"):
        processor([{"box_xyxy": [0, 0, 65, 4], "label": "the dog"}], [context.image.layout])
    closed = BoxSetTargetProcessor(("cow",))
    assert closed.for_call(context.call) is closed


def test_phrases_are_separated_and_counted_once() -> None:
    assert phrases_of("a red car;  the   dog; a red car;") == ["a red car", "the dog"]
    assert phrases_of(" ; ") == [""] and phrases_of("U.S. flag") == ["U.S. flag"]
    assert class_index("", ["only"]) == 0
    with pytest.raises(ValueError, match="expected one of"):
        class_index("", ["one", "two"])


SCENES: list[list[tuple[int, int, int]]] = [
    [],
    [(0, 0, 0)],
    [(1, 0, 1)],
    [(0, 1, 1), (1, 1, 0)],
    [(0, 0, 1), (1, 0, 1)],
    [(1, 0, 0), (0, 1, 0), (1, 1, 1)],
    [(0, 0, 0), (1, 0, 1), (0, 1, 1)],
    [(0, 0, 1), (1, 0, 0), (0, 1, 0), (1, 1, 0)],
]
"""The objects of eight pictures: column, row, colour."""


def average_precision(head: BoxSetHead, contexts: list[HeadContext], wanted: list[list[dict[str, Any]]]) -> float:
    """COCO's, of the lists that the head answers."""
    states, names = torch.zeros(len(contexts), STATE), ["red", "blue"]
    with torch.no_grad():
        results = head.decode(head(states, [1] * len(contexts), contexts), contexts)

    def row(image: int, box: Any, label: str, **more: Any) -> dict[str, Any]:
        x1, y1, x2, y2 = box
        return {"image_id": image, "category_id": names.index(label), "bbox": [x1, y1, x2 - x1, y2 - y1], **more}

    truth = [row(image, item["box_xyxy"], item["label"]) for image, own in enumerate(wanted) for item in own]
    found = []
    for image, result in enumerate(results):
        assert isinstance(result, BoxesResult)
        listed = zip(result.boxes_xyxy, result.labels, result.scores, strict=True)
        found += [row(image, box, label, score=score) for box, label, score in listed]
    annotations = [{**item, "id": number} for number, item in enumerate(truth, 1)]
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    ground_truth = {"images": [{"id": i} for i in range(len(contexts))], "categories": categories}
    return coco_average_precision({**ground_truth, "annotations": annotations}, found)["AP"]


def test_detection_lists_are_learned() -> None:
    """Eight pictures of none to four objects, overfitted: every object has its box and its label, and nothing else."""
    torch.manual_seed(0)
    head = BoxSetHead(STATE, FEATURE, width=64, threshold=0.3)
    contexts, wanted = (list(column) for column in zip(*map(scene, SCENES), strict=True))
    targets = [
        head.target_processor.for_call(context.call)(own, [context.image.layout])
        for context, own in zip(contexts, wanted, strict=True)
    ]
    assert average_precision(head, contexts, wanted) < 0.1
    steps, states = 120, torch.zeros(len(contexts), STATE)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        head.loss(head(states, [1] * len(contexts), contexts), targets).total.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    assert average_precision(head, contexts, wanted) >= 0.9
