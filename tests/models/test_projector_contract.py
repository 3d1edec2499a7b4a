"""Every projector: as many tokens as predicted, for every grid, and an item alone as among others."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from torch import nn

from layers.layout import ItemLayout, Layout
from models import projectors
from models.class_paths import ALLOWED_CLASSES
from models.projectors import Projector, QFormerProjector, QueryRule
from models.projectors.grids import average

INPUT, OUTPUT = 12, 24
SMALL = {
    "ConvGLUProjector": {"branch_sizes": [8, 4], "channels": [[16, 24], [8, 24]], "bottleneck": 6},
    "PerceiverResampler": {"num_queries": 5, "num_heads": 4},
    "QFormerProjector": {"hidden_size": 16, "num_heads": 4},
}
GRIDS = {2: [(4, 6), (1, 1), (5, 3), (4, 6), (7, 1)], 1: [(7,), (1,), (12,), (7,), (3,)]}
TAKES = {
    "PixelShuffleProjector": (2,),
    "ConvProjector": (2,),
    "FrameStackProjector": (1,),
    "ConvGLUProjector": (1,),
    "AnyresProjector": (2,),
}


def _classes() -> list[type[Projector]]:
    found = [value for value in vars(projectors).values() if inspect.isclass(value) and issubclass(value, Projector)]
    return [value for value in found if not inspect.isabstract(value)]


def _built(kind: type[Projector]) -> Projector:
    torch.manual_seed(0)
    if kind is projectors.TimedProjector:
        return projectors.TimedProjector(projectors.PoolProjector(INPUT, OUTPUT), OUTPUT).eval()
    if kind is projectors.RegionProjector:
        return projectors.RegionProjector(projectors.PoolProjector(INPUT, OUTPUT), INPUT, OUTPUT).eval()
    return kind(INPUT, OUTPUT, **SMALL.get(kind.__name__, {})).eval()  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", _classes(), ids=lambda kind: kind.__name__)
def test_tokens_are_as_many_as_predicted_and_items_do_not_meet(kind: type[Projector]) -> None:
    assert f"models.projectors.{kind.__name__}" in ALLOWED_CLASSES
    projector = _built(kind)
    for axes in TAKES.get(kind.__name__, (1, 2)):
        layout = Layout([ItemLayout(grid, (8, 8)) for grid in GRIDS[axes]])
        features = torch.randn(layout.total, INPUT)
        tokens, projected = projector(features, layout)
        assert tokens.shape == (projected.total, OUTPUT)
        assert projected.lengths == tuple(projector.token_rule.num_tokens(item) for item in layout.items)
        assert [item.original_size for item in projected.items] == [item.original_size for item in layout.items]
        for piece, item, given in zip(layout.split(features), layout.items, projected.split(tokens), strict=True):
            alone, _ = projector(piece, Layout([item]))
            torch.testing.assert_close(alone, given, atol=2e-5, rtol=1e-4)
        tiled = (
            Layout([ItemLayout((4, 6), (90, 40), tiles=(1, 2)), ItemLayout((4, 6), (9, 9))]) if axes == 2 else layout
        )
        tokens, projected = projector(torch.randn(tiled.total, INPUT), tiled)
        assert len(tokens) == projected.total == sum(projector.token_rule.num_tokens(item) for item in tiled.items)
        same = Layout([layout.items[0]] * 3)
        stacked, _ = projector(features[: same.lengths[0]].repeat(3, 1), same)
        torch.testing.assert_close(stacked[: len(stacked) // 3], stacked[-(len(stacked) // 3) :])


@pytest.mark.parametrize("kind", _classes(), ids=lambda kind: kind.__name__)
def test_every_weight_learns_and_the_scale_is_that_of_text(kind: type[Projector]) -> None:
    projector = _built(kind).train()
    axes = TAKES.get(kind.__name__, (1, 2))[-1]
    layout = Layout([ItemLayout(grid, (8, 8)) for grid in GRIDS[axes]])
    tokens, _ = projector(torch.randn(layout.total, INPUT) * 50, layout)
    assert 0.2 < tokens.square().mean().sqrt() < 5
    tokens.mul(torch.randn_like(tokens)).sum().backward()
    unused = [name for name, parameter in projector.named_parameters() if parameter.grad is None]
    assert unused == []


def test_queries_per_window() -> None:
    rule = QueryRule(num_queries=3, window=4)
    item = ItemLayout((9,), (9 * 320,), seconds=0.18)
    assert rule.projected(item) == replace(item, grid=(9,)) and rule.num_tokens(item) == 9
    torch.manual_seed(0)
    projector = QFormerProjector(INPUT, OUTPUT, num_queries=3, window=4, hidden_size=16, num_heads=2).eval()
    features = torch.randn(9, INPUT)
    tokens, _ = projector(features, Layout([item]))
    changed = features.clone()
    changed[5] *= -1  # in the second window; the norm takes away what is added to all
    other, _ = projector(changed, Layout([item]))
    assert torch.equal(tokens[:3], other[:3]) and torch.equal(tokens[6:], other[6:])
    assert not torch.allclose(tokens[3:6], other[3:6])


def test_queries_are_not_alike() -> None:
    projector = _built(projectors.PerceiverResampler)
    tokens, _ = projector(torch.randn(20, INPUT), Layout([ItemLayout((4, 5), (8, 8))]))
    assert torch.pdist(tokens).min() > 1e-3


def test_a_branch_is_treated_by_itself_until_the_join() -> None:
    """Written out as the paper describes it, on one clip."""
    projector = _built(projectors.ConvGLUProjector)
    assert isinstance(projector, projectors.ConvGLUProjector)
    clip = torch.randn(13, INPUT)
    parts = []
    for branch, part in zip(projector.branches, (clip[:, :8], clip[:, 8:]), strict=True):
        states = part.T[None]
        for convolution in branch.convolutions:
            first, second = convolution(states).chunk(2, dim=1)
            states = first * second.sigmoid()
        states = states[0].T
        states = states + branch.norm(branch.up(nn.functional.gelu(branch.down(states))))
        parts.append(branch.linear(states))
    expected = projector.norm(projector.join(torch.cat(parts, dim=-1)))
    tokens, projected = projector(clip, Layout([ItemLayout((13,), (13 * 320,), seconds=0.26)]))
    torch.testing.assert_close(tokens, expected)
    assert projected.lengths == (4,)


def test_frames_say_when_they_are_shown_and_stills_do_not() -> None:
    projector = _built(projectors.TimedProjector)
    assert isinstance(projector, projectors.TimedProjector)
    items = [ItemLayout((2, 2), (8, 8), seconds=second) for second in (0.0, 1.5, 90.0)] + [ItemLayout((2, 2), (8, 8))]
    features, layout = torch.randn(4, INPUT).repeat(4, 1), Layout(items)
    before, _ = projector(features, layout)
    torch.testing.assert_close(before, projector.projector(features, layout)[0])  # begins as it was
    nn.init.normal_(projector.time.weight)
    tokens, _ = projector(features, layout)
    assert torch.pdist(tokens).min() > 0.1 and torch.equal(tokens[3], before[3])


def test_edges_are_averaged_over_what_is_there() -> None:
    maps = torch.arange(5.0).reshape(1, 5, 1)
    assert average(maps, 2).flatten().tolist() == [0.5, 2.5, 4.0]
    square = torch.ones(1, 3, 3, 2)
    assert torch.equal(average(square, 2), torch.ones(1, 2, 2, 2))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: projectors.ConvProjector(4, 8, kernel_size=2), "odd number, got 2"),
        (lambda: projectors.PerceiverResampler(4, 10, num_heads=4), "divisor of the width 10, got 4"),
        (lambda: projectors.MLPProjector(4, 8, num_layers=0), "at least 1, got 0"),
        (lambda: projectors.ConvGLUProjector(9, 8, [4, 4]), r"sum to 9, got \[4, 4\]"),
        (lambda: projectors.ConvGLUProjector(8, 8, [4, 4], [[8, 8], [8]]), "as many convolutions for each of 2"),
    ],
)
def test_what_cannot_be_built(build: type[nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
