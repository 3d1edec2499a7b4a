"""Every head keeps the contract of layers/head.py, without a language model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from heads.boxes import BoxHead, BoxSetHead
from heads.embedding import EmbeddingHead, PairScoreHead
from heads.entity_ranking import EntityRankingHead
from heads.graph import LinkHead, NodeClassHead
from heads.image import FlowImageHead
from heads.masks import Mask2FormerHead, MaskHead, SamMaskHead
from heads.pointer import PointerHead
from layers.calls import (
    BoxesResult,
    Call,
    EmbeddingResult,
    HeadContext,
    ImageResult,
    LabelResult,
    MaskResult,
    MasksResult,
    MediaFeatures,
    Region,
    Result,
    ScoreResult,
    SelectionResult,
)
from layers.geometry import GeometricTransform
from layers.head import Head, HeadTarget, num_terms
from layers.layout import ItemLayout
from tests.heads.experts import MASK2FORMER, SAM

STATE, FEATURE, NODE = 24, 16, 10


def image_context(task: str, original: tuple[int, int], grid: tuple[int, int], stride: int = 4) -> HeadContext:
    """A call on a letterboxed image of ``original`` (width, height) with features on ``grid`` (rows, columns)."""
    size = (grid[1] * stride, grid[0] * stride)
    layout = ItemLayout(grid, original, GeometricTransform.letterbox(original, size))
    features = torch.randn(grid[0] * grid[1], FEATURE, requires_grad=True)
    pixels = torch.randint(0, 256, (3, size[1], size[0]), dtype=torch.uint8)
    raster = torch.randint(0, 256, (3, original[1], original[0]), dtype=torch.uint8)
    media = MediaFeatures("image", features, layout, {"pixel_values": pixels}, lambda: raster)
    return HeadContext(Call(task, "red 7", (Region((0.2, 0.3, 0.6, 0.7)),)), [media])


def graph_media(nodes: int) -> MediaFeatures:
    edges = torch.stack([torch.zeros(nodes - 1, dtype=torch.long), torch.arange(1, nodes)])
    features = torch.randn(nodes, FEATURE, requires_grad=True)
    inputs = {"x": torch.rand(nodes, NODE), "edge_index": edges}
    return MediaFeatures("graph", features, ItemLayout((nodes,), (nodes,)), inputs)


def images(task: str) -> Callable[[], list[HeadContext]]:
    return lambda: [
        image_context(task, (40, 20), (6, 6)),
        image_context(task, (32, 48), (8, 4)),
        image_context(task, (24, 24), (6, 6)),
    ]


def graphs(count: int) -> Callable[[], list[HeadContext]]:
    return lambda: [
        HeadContext(Call("graph_task", ""), [graph_media(nodes + index) for index in range(count)])
        for nodes in (3, 7, 4)
    ]


def texts() -> list[HeadContext]:
    return [HeadContext(Call("embed", "")) for _ in range(3)]


def pairs(**query: Any) -> list[dict[str, Any]]:
    """A query, what belongs to it, and what does not."""
    roles = ("query", "positive", "negative")
    made = [{"group": "one", "role": role, "item": item} for role, item in zip(roles, "abc", strict=True)]
    return [{**made[0], **query}, *made[1:]]


@dataclass
class Case:
    """A head, contexts of three calls whose media differ in shape, original targets, and the result's type."""

    build: Callable[[], Head]
    contexts: Callable[[], list[HeadContext]]
    targets: list[Any]
    result: type[Result]
    num_states: int = 1
    sees_media: bool = True
    terms: int = 3
    reached: int = 3  # calls whose states get a gradient
    steps: int = 12


def picture(width: int, height: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def flow() -> Head:
    return FlowImageHead(STATE, FEATURE, num_queries=2, canvas_size=(12, 8), channels=(8, 16), num_steps=2)


CASES = {
    "boxes": Case(
        lambda: BoxHead(STATE, FEATURE, width=16),
        images("ground"),
        [[1, 2, 30, 15], [[0, 0, 32, 48]], [3, 3, 4, 4]],
        BoxesResult,
    ),
    "masks": Case(
        lambda: MaskHead(STATE, FEATURE, width=16, channels=(8, 8, 4)),
        images("seg"),
        [torch.rand(20, 40) > 0.5, torch.ones(48, 32).bool(), torch.zeros(24, 24).bool()],
        MaskResult,
    ),
    "box_sets": Case(
        lambda: BoxSetHead(STATE, FEATURE, width=16, num_layers=1, threshold=0.0),
        images("detect"),
        [[{"box_xyxy": [1, 2, 30, 15]}, {"box_xyxy": [3, 3, 9, 9], "label": "red 7"}], [0, 0, 32, 48], []],
        BoxesResult,
    ),
    "sam": Case(
        lambda: SamMaskHead(STATE, config=SAM),
        images("seg"),
        [torch.rand(20, 40) > 0.5, torch.ones(48, 32).bool(), torch.zeros(24, 24).bool()],
        MaskResult,
        sees_media=False,
        steps=50,
    ),
    "mask2former": Case(
        lambda: Mask2FormerHead(STATE, config=MASK2FORMER, image_size=(64, 64), threshold=0.0),
        images("seg"),
        [[{"mask": torch.rand(20, 40) > 0.5, "label": "red 7"}], torch.ones(48, 32).bool(), []],
        MasksResult,
        sees_media=False,
    ),
    "draw": Case(flow, images("draw"), [picture(12, 8), picture(24, 16), picture(12, 8)], ImageResult, 2, False),
    "edit": Case(flow, images("edit"), [picture(40, 20), picture(32, 48), picture(24, 24)], ImageResult, 2),
    "node_class": Case(
        lambda: NodeClassHead(STATE, FEATURE, ["io", "net", "math"], width=16),
        graphs(1),
        ["net", "io", "net"],
        LabelResult,
    ),
    "link": Case(lambda: LinkHead(STATE, FEATURE, NODE, width=16), graphs(2), [1.0, 0, 1], ScoreResult),
    "embed": Case(
        lambda: EmbeddingHead(STATE, 12, "attention", ["embed"], learn_temperature=True, symmetric=True),
        texts,
        pairs(),
        EmbeddingResult,
        num_states=2,
        terms=1,
    ),
    "pair": Case(
        lambda: PairScoreHead(STATE, 12, ["no", "yes"], pair_size=16),
        texts,
        pairs(label="yes", teacher=[-1.0, 2.0]),
        EmbeddingResult,
        terms=1,
        reached=2,
    ),
    "entity": Case(
        lambda: EntityRankingHead(STATE, 12, ["part of", "near"], "complex"),
        texts,
        pairs(relation="near"),
        EmbeddingResult,
        terms=1,
    ),
    "pointer": Case(lambda: PointerHead(STATE, FEATURE, width=16), graphs(1), [[2, 0], [1, 3, 4], []], SelectionResult),
    "pointer_lstm": Case(
        lambda: PointerHead(STATE, FEATURE, width=16, encoder="lstm", score="dot", max_selections=1),
        graphs(1),
        [[2], [6], [0]],
        SelectionResult,
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    return CASES[request.param]


def target_of(head: Head, value: Any, context: HeadContext) -> HeadTarget:
    processor: Any = head.target_processor
    own = processor.for_call(context.call) if hasattr(processor, "for_call") else processor
    target: HeadTarget = own(value, [item.layout for item in context.media])
    return target


def excited(head: Head) -> Head:
    """Move every parameter off its initial value, so that zero-initialised layers do not hide a dependence."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return head


def test_loss_counts_calls_and_reaches_states_features_and_every_parameter(case: Case) -> None:
    head, contexts = excited(case.build()), case.contexts()
    states = torch.randn(3 * case.num_states, STATE, requires_grad=True)
    targets = [target_of(head, value, c) for value, c in zip(case.targets, contexts, strict=True)]
    term = head.loss(head(states, [case.num_states] * 3, contexts), targets)
    assert term.count == case.terms == sum(num_terms(target) for target in targets)
    assert term.total.shape == ()
    term.total.backward()
    assert states.grad is not None
    assert (states.grad.abs().sum(dim=1) > 0).sum() == case.reached * case.num_states
    if case.sees_media:
        for item in (item for context in contexts for item in context.media):
            assert item.features.grad is not None and item.features.grad.abs().sum() > 0
        untouched = [name for name, p in head.named_parameters() if p.grad is None]
        assert [name for name in untouched if not name.startswith(("queries", "sketch", "no_condition"))] == []


def test_training_on_three_calls_lowers_the_loss(case: Case) -> None:
    head, contexts = case.build(), case.contexts()
    states = torch.randn(3 * case.num_states, STATE)
    targets = [target_of(head, value, c) for value, c in zip(case.targets, contexts, strict=True)]
    optimizer = torch.optim.Adam(head.parameters(), lr=6e-3)

    def loss() -> torch.Tensor:
        torch.manual_seed(1)  # the flow draws the same times and noise every step
        return head.loss(head(states, [case.num_states] * 3, contexts), targets).total

    first = float(loss().detach())
    for _ in range(case.steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert float(loss().detach()) < 0.9 * first


def test_a_call_alone_is_predicted_as_within_a_batch(case: Case) -> None:
    head, contexts = excited(case.build()).eval(), case.contexts()
    states = torch.randn(3 * case.num_states, STATE)
    with torch.no_grad():
        together = head.decode(head(states, [case.num_states] * 3, contexts), contexts)
        for index, state in enumerate(states.split(case.num_states)):
            alone = head.decode(
                head(state, [case.num_states], contexts[index : index + 1]), contexts[index : index + 1]
            )
            _assert_same(alone[0], together[index])


def test_no_calls_give_no_results_and_a_zero_loss_that_touches_every_parameter(case: Case) -> None:
    head = case.build()
    predictions = head(torch.zeros(0, STATE), [], [])
    term = head.loss(predictions, [])
    assert term.count == 0 and float(term.total.detach()) == 0
    term.total.backward()
    assert all(parameter.grad is not None for parameter in head.parameters() if parameter.requires_grad)
    assert head.decode(predictions, []) == []


def test_results_have_the_declared_type_and_original_size(case: Case) -> None:
    head, contexts = case.build().eval(), case.contexts()
    with torch.no_grad():
        results = head.decode(head(torch.randn(3 * case.num_states, STATE), [case.num_states] * 3, contexts), contexts)
    for result, context in zip(results, contexts, strict=True):
        assert type(result) is case.result and result.call is context.call
        if isinstance(result, EmbeddingResult):
            assert result.vector.shape == (12,) and result.vector.dtype == torch.float32
            continue
        size = context.media[-1].layout.original_size
        if isinstance(result, BoxesResult):
            x1, y1, x2, y2 = result.boxes_xyxy[0]
            assert 0 <= x1 <= x2 <= size[0] and 0 <= y1 <= y2 <= size[1] and 0 <= result.scores[0] <= 1
            assert list(result.scores) == sorted(result.scores, reverse=True)
        elif isinstance(result, MaskResult):
            assert result.mask.dtype == torch.bool and result.mask.shape == size[::-1]
        elif isinstance(result, MasksResult):
            assert result.masks.dtype == torch.bool and result.masks.shape[1:] == size[::-1]
            assert len(result.masks) and set(result.labels) == {"red 7"}
        elif isinstance(result, ImageResult):
            expected = size if context.call.task == "edit" else (12, 8)
            assert result.image.dtype == torch.uint8 and result.image.shape == (3, *expected[::-1])
        elif isinstance(result, LabelResult):
            assert result.label == max(result.probabilities, key=lambda name: result.probabilities[name])
            assert sum(result.probabilities.values()) == pytest.approx(1)
        elif isinstance(result, ScoreResult):
            assert 0 <= result.score <= 1
        elif isinstance(result, SelectionResult):
            assert set(result.indices) <= set(range(size[0])) and result.score < 0
            assert len(set(result.indices)) == len(result.indices)


def test_state_dict_restores_every_prediction(case: Case) -> None:
    head, contexts = excited(case.build()).eval(), case.contexts()
    other = excited(case.build()).eval()
    other.load_state_dict(head.state_dict())
    states = torch.randn(3 * case.num_states, STATE)
    with torch.no_grad():
        for one, two in zip(
            head.decode(head(states, [case.num_states] * 3, contexts), contexts),
            other.decode(other(states, [case.num_states] * 3, contexts), contexts),
            strict=True,
        ):
            _assert_same(one, two)


def test_a_link_without_states_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=r"reads hidden states|a link that passes states"):
        case.build()(None, [1] * 3, case.contexts())


def test_what_a_head_remembers_is_in_no_checkpoint(case: Case) -> None:
    head = case.build()
    names = head.state_dict().keys()
    with pytest.raises(ValueError, match=r"keeps no state|expected an index"):
        head.prime("anything")
    head.memory["one"] = torch.zeros(3)
    assert head.recall("one") is not None and head.recall("two") is None
    assert head.state_dict().keys() == names
    head.reset("one")
    assert head.recall("one") is None


def _assert_same(one: Result, two: Result) -> None:
    if isinstance(one, BoxesResult) and isinstance(two, BoxesResult):
        torch.testing.assert_close(torch.tensor(one.boxes_xyxy), torch.tensor(two.boxes_xyxy), atol=1e-4, rtol=1e-5)
        assert one.scores == pytest.approx(two.scores, abs=1e-5)
    elif isinstance(one, MaskResult) and isinstance(two, MaskResult):
        assert (one.mask == two.mask).float().mean() > 0.999  # a logit of 0 may fall to either side
    elif isinstance(one, MasksResult) and isinstance(two, MasksResult):
        assert one.scores == pytest.approx(two.scores, abs=1e-4) and one.masks.shape == two.masks.shape
        assert (one.masks == two.masks).float().mean() > 0.999
    elif isinstance(one, ImageResult) and isinstance(two, ImageResult):
        assert (one.image.int() - two.image.int()).abs().max() <= 1
    elif isinstance(one, LabelResult) and isinstance(two, LabelResult):
        assert one.label == two.label and one.probabilities == pytest.approx(two.probabilities, abs=1e-5)
    elif isinstance(one, EmbeddingResult) and isinstance(two, EmbeddingResult):
        torch.testing.assert_close(one.vector, two.vector, atol=1e-5, rtol=1e-5)
    elif isinstance(one, SelectionResult) and isinstance(two, SelectionResult):
        assert one.indices == two.indices and one.score == pytest.approx(two.score, abs=1e-5)
    else:
        assert isinstance(one, ScoreResult) and isinstance(two, ScoreResult)
        assert one.score == pytest.approx(two.score, abs=1e-5)
