"""Pointers: masks, ends, beams against every sequence, and a task that a table of classes cannot do."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import pytest
import torch

from heads.pointer import OrderTargetProcessor, PointerHead
from layers.calls import Call, HeadContext, MediaFeatures
from layers.layout import ItemLayout

STATE, FEATURE = 5, 4


def context(features: torch.Tensor) -> HeadContext:
    size = (len(features),)
    return HeadContext(Call("order", ""), [MediaFeatures("graph", features, ItemLayout(size, size))])


def built(**options: Any) -> PointerHead:
    torch.manual_seed(0)
    head = PointerHead(STATE, FEATURE, width=8, num_heads=2, **options).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return head


def probability(head: PointerHead, states: torch.Tensor, given: HeadContext, indices: list[int]) -> float:
    """Log-probability of a sequence, by the loss."""
    target = head.target_processor(indices, [given.media[-1].layout])
    return -float(head.loss(head(states, [1], [given]), [target]).total)


@pytest.mark.parametrize(
    ("options", "sequences"),
    [
        ({}, [list(p) for length in range(4) for p in permutations(range(3), length)]),
        ({"max_selections": 2}, [list(p) for length in range(3) for p in permutations(range(3), length)]),
        ({"max_selections": 1}, [[0], [1], [2]]),
        (
            {"max_selections": 2, "repeats": True, "score": "dot", "encoder": "lstm"},
            [list(p) for length in range(3) for p in product(range(3), repeat=length)],
        ),
    ],
)
def test_a_wide_beam_finds_the_likeliest_of_all_sequences(options: dict[str, Any], sequences: list[list[int]]) -> None:
    head = built(**options, beam=16)
    with torch.no_grad():
        states, given = torch.randn(1, STATE), context(torch.randn(3, FEATURE))
        scores = [probability(head, states, given, indices) for indices in sequences]
        assert sum(torch.tensor(scores).exp()) == pytest.approx(1, abs=1e-5)
        (result,) = head.decode(head(states, [1], [given]), [given])
    best = max(range(len(scores)), key=scores.__getitem__)
    assert list(result.indices) == sequences[best] and result.score == pytest.approx(scores[best], abs=1e-5)


def test_greedy_takes_the_likeliest_step_by_step() -> None:
    head = built()
    with torch.no_grad():
        states, given = torch.randn(1, STATE), context(torch.randn(4, FEATURE))
        (result,) = head.decode(head(states, [1], [given]), [given])
        assert result.score == pytest.approx(probability(head, states, given, list(result.indices)), abs=1e-5)
        wide = built(beam=8)
        (better,) = wide.decode(wide(states, [1], [given]), [given])
    assert better.score >= result.score - 1e-6
    so_far: list[int] = []
    for index in (*result.indices, None):
        options = [place for place in range(4) if place not in so_far]
        others = {place: _step(head, states, given, so_far, place) for place in [*options, None]}
        assert max(others, key=lambda place: others[place]) == index
        so_far += [] if index is None else [index]


def _step(head: PointerHead, states: torch.Tensor, given: HeadContext, so_far: list[int], place: int | None) -> float:
    """Probability of one more choice: that of all sequences that go on with it."""
    rest = [index for index in range(4) if index not in so_far]
    tails = [[]] if place is None else [
        [place, *tail] for length in range(len(rest)) for tail in permutations([r for r in rest if r != place], length)
    ]  # fmt: skip
    with torch.no_grad():
        return sum(torch.tensor([probability(head, states, given, [*so_far, *tail]) for tail in tails]).exp()).item()


def test_calls_with_inputs_of_any_number_do_not_disturb_each_other() -> None:
    for options in ({}, {"encoder": "lstm"}, {"num_layers": 0, "max_selections": 3, "beam": 3}):
        head = built(**options)
        given = [context(torch.randn(count, FEATURE)) for count in (1, 6, 3)]
        states = torch.randn(3, STATE)
        with torch.no_grad():
            together = head.decode(head(states, [1] * 3, given), given)
            for row, one in enumerate(given):
                (alone,) = head.decode(head(states[row : row + 1], [1], [one]), [one])
                assert alone.indices == together[row].indices
                assert alone.score == pytest.approx(together[row].score, abs=1e-5)


def test_targets_that_do_not_fit_are_refused() -> None:
    layout = [ItemLayout((3,), (3,))]
    assert OrderTargetProcessor("graph", None, False)([2, 0], layout)["indices"].tolist() == [2, 0]
    for processor, value, told in (
        (OrderTargetProcessor("graph", None, False), [3], "0 to 2, got 3"),
        (OrderTargetProcessor("graph", None, False), [1, 1], "different indices"),
        (OrderTargetProcessor("graph", 1, False), [1, 2], "one index, got 2"),
        (OrderTargetProcessor("graph", 1, False), [], "one index, got 0"),
        (OrderTargetProcessor("graph", 2, True), [1, 1, 1], "at most 2 indices, got 3"),
    ):
        with pytest.raises(ValueError, match=told):
            processor(value, layout)
    with pytest.raises(ValueError, match="needs the medium 'audio' before its call"):
        OrderTargetProcessor("audio", None, False)([0], [])
    with pytest.raises(ValueError, match="repeats: expected max_selections"):
        PointerHead(STATE, FEATURE, repeats=True)
    head = PointerHead(STATE, FEATURE, elements="image", width=8)
    with pytest.raises(ValueError, match="needs the medium 'image', the conversation has none"):
        head(torch.randn(1, STATE), [1], [context(torch.randn(2, FEATURE))])


def test_it_learns_to_sort_more_numbers_than_it_was_shown() -> None:
    torch.manual_seed(0)
    head = PointerHead(STATE, 2, width=32, num_heads=2)
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3)
    states = torch.zeros(32, STATE)

    def batch(count: int) -> tuple[list[HeadContext], list[dict[str, torch.Tensor]]]:
        values = torch.rand(32, count)
        given = [context(torch.stack([row, 1 - row], dim=1)) for row in values]
        return given, [{"indices": row.argsort()} for row in values]

    for _ in range(150):
        given, targets = batch(int(torch.randint(2, 6, ())))
        term = head.loss(head(states, [1] * 32, given), targets)
        optimizer.zero_grad()
        (term.total / term.count).backward()
        optimizer.step()
    head.eval()
    given, targets = batch(6)
    results = head.decode(head(states, [1] * 32, given), given)
    right = sum(list(r.indices) == t["indices"].tolist() for r, t in zip(results, targets, strict=True))
    assert right >= 8, "a guess is right once in 720"
