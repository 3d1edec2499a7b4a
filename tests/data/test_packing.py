from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.packing import merge_counts, pack, plan_packs
from data.render import IGNORED, Rendered
from data.shards import Sample
from data.stream import render_sample
from models.plan import BatchPlan
from tests.data.conftest import audio_sample, graph_sample, image_sample, text_record


@pytest.fixture
def rendered(plan: BatchPlan) -> list[Rendered]:
    samples = [
        (text_record("text-0"), {}),
        image_sample("image-0"),
        audio_sample("audio-0"),
        image_sample("image-01", (16, 48)),
        graph_sample("graph-0"),
    ]
    return [render_sample(Sample(record.key, record, members), plan) for record, members in samples]


def test_a_pack_holds_its_samples_unchanged(plan: BatchPlan, rendered: list[Rendered]) -> None:
    batch = pack(rendered, plan)
    assert batch.keys == [item.key for item in rendered]
    assert batch.segment_lengths == [len(item.input_ids) for item in rendered]
    for name in ("input_ids", "labels"):
        segments = torch.split(getattr(batch, name)[0], batch.segment_lengths)
        assert [segment.tolist() for segment in segments] == [getattr(item, name) for item in rendered]
    positions = torch.split(batch.position_ids[0], batch.segment_lengths)
    assert all(torch.equal(segment, torch.arange(len(segment))) for segment in positions)


def test_media_and_calls_point_to_where_they_belong(plan: BatchPlan, rendered: list[Rendered]) -> None:
    batch = pack(rendered, plan)
    ids = batch.input_ids[0]
    assert {kind: media.segments.tolist() for kind, media in batch.media.items()} == {
        "audio": [2],
        "graph": [4],
        "image": [1, 3],
    }
    for kind, media in batch.media.items():
        assert (ids == plan.vocabulary.media_ids[kind]).nonzero().flatten().tolist() == media.positions.tolist()
        assert sum(media.token_lengths) == len(media.positions)
        assert len(media.layout) == len(media.items) == len(media.token_lengths)
    starts = np.cumsum([0, *batch.segment_lengths])
    for head, calls in batch.calls.items():
        for item in calls:
            span = range(*item.call.token_span)
            assert starts[item.segment] <= span.start < span.stop <= starts[item.segment + 1]
            assert ids[span.start] == plan.vocabulary.open_ids[item.call.task]
            assert plan.tasks[item.call.task].head == head
            assert all(batch.media[kind].segments[index] == item.segment for kind, index in item.media)
    assert [item.media for item in batch.calls["masks"]] == [[("image", 0)], [("image", 1)]]
    assert [item.segment for item in batch.calls["nodes"]] == [4]


def test_counts_are_what_the_losses_use(plan: BatchPlan, rendered: list[Rendered]) -> None:
    first = Rendered("first", [5, 6, 7], [5, IGNORED, 7])  # its first label has nothing before it
    batch = pack([*rendered, first], plan)
    segments = torch.split(batch.labels[0], batch.segment_lengths)
    learned = sum(int((segment[1:] != IGNORED).sum()) for segment in segments)
    assert batch.counts == {"token": learned, "boxes": 2, "masks": 2}
    alone = [pack([item], plan) for item in (*rendered, first)]
    assert merge_counts(alone) == batch.counts


def test_padding_is_one_segment_that_teaches_nothing(plan: BatchPlan, rendered: list[Rendered]) -> None:
    batch, padded = pack(rendered, plan), pack(rendered, plan, pad_to=700)
    assert padded.input_ids.shape == padded.labels.shape == padded.position_ids.shape == (1, 700)
    assert padded.segment_lengths == [*batch.segment_lengths, 700 - batch.input_ids.shape[1]]
    assert (padded.labels[0, batch.input_ids.shape[1] :] == IGNORED).all()
    assert padded.counts == batch.counts
    with pytest.raises(ValueError, match="at most 10 tokens"):
        pack(rendered, plan, pad_to=10)
    with pytest.raises(ValueError, match="at least one"):
        pack([], plan)


_lengths = st.lists(st.integers(1, 100), min_size=1, max_size=400)


@settings(max_examples=60, deadline=None)
@given(lengths=_lengths, seed=st.integers(0, 5), epoch=st.integers(0, 5), window=st.integers(8, 100))
def test_every_sample_is_in_one_pack_that_holds_it(lengths: list[int], seed: int, epoch: int, window: int) -> None:
    plan = plan_packs(lengths, 90, seed, epoch, window=window, oversize="quarantine")
    assert sorted(index for item in plan.packs for index in item) == [n for n, x in enumerate(lengths) if x <= 90]
    assert plan.oversize == [n for n, x in enumerate(lengths) if x > 90]
    assert all(0 < sum(lengths[index] for index in item) <= 90 for item in plan.packs)
    assert plan == plan_packs(lengths, 90, seed, epoch, window=window, oversize="quarantine")


def test_padding_stays_below_five_percent() -> None:
    for low, high, limit in ((10, 60, 256), (10, 200, 512), (50, 500, 512), (20, 1000, 2048)):
        lengths = np.random.default_rng(0).integers(low, high, 5000)
        packs = plan_packs(lengths, limit, 0, 0).packs
        assert lengths.sum() / (len(packs) * limit) > 0.95


def test_epochs_differ_and_length_does_not_tell_when_a_sample_comes() -> None:
    lengths = np.random.default_rng(0).integers(10, 200, 2000)
    epochs = [plan_packs(lengths, 512, 0, epoch).packs for epoch in range(12)]
    assert epochs[0] != epochs[1]
    correlations = []
    for packs in epochs:
        when = np.empty(len(lengths))
        for number, item in enumerate(packs):
            when[item] = number
        correlations.append(np.corrcoef(when, lengths)[0, 1])
    assert abs(np.mean(correlations)) < 0.05


def test_oversize_is_an_error_unless_asked_otherwise() -> None:
    with pytest.raises(ValueError, match=r"max_tokens=10, got 11 tokens in sample 1"):
        plan_packs([5, 11], 10, 0, 0)
    with pytest.raises(ValueError, match="positive lengths"):
        plan_packs([5, 0], 10, 0, 0)


def _imbalance(packs: list[list[int]], costs: np.ndarray) -> float:
    """Standard deviation of the packs' work, over its mean."""
    work = np.array([costs[pack].sum() for pack in packs])
    return float(work.std() / work.mean())


def test_the_encoders_work_is_balanced_between_packs() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 300, 4000)
    costs = np.where(rng.random(4000) < 0.3, rng.integers(200, 1200, 4000), 0)  # three in ten show an image
    by_tokens = plan_packs(lengths, 2048, 0, 0).packs
    balanced = plan_packs(lengths, 2048, 0, 0, costs=costs).packs
    assert _imbalance(balanced, costs) < 0.2 * _imbalance(by_tokens, costs)
    assert lengths.sum() / (2048 * len(balanced)) > 0.95
    assert balanced == plan_packs(lengths, 2048, 0, 0, costs=costs).packs
    assert by_tokens == plan_packs(lengths, 2048, 0, 0, costs=np.zeros(4000)).packs  # nothing to balance


@given(
    sizes=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 90)), min_size=1, max_size=150),
    most=st.sampled_from([None, 10, 100]),
    window=st.sampled_from([1, 16, 1024]),
)
@settings(deadline=None)
def test_balanced_packs_hold_their_limits(sizes: list[tuple[int, int]], most: int | None, window: int) -> None:
    lengths, costs = (np.array(values) for values in zip(*sizes, strict=True))
    packs = plan_packs(lengths, 50, 1, 2, costs=costs, max_cost=most, window=window).packs
    assert sorted(index for pack in packs for index in pack) == list(range(len(sizes)))
    assert all(lengths[pack].sum() <= 50 for pack in packs)
    over = [pack for pack in packs if most is not None and costs[pack].sum() > most]
    assert all((costs[pack] > 0).sum() == 1 for pack in over)  # its one sample with media costs more than a pack may
