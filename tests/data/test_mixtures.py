"""Mixtures: shares, temperature, caps, selectors, curricula, unmixed steps, budgets, and purity of the schedule."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mixtures import CurriculumStage, Mixture, PackSchedule, Source, _without

SIZES = (100, 400, 50)


def schedule(
    mixture: Mixture | None = None,
    sizes: tuple[int, ...] = SIZES,
    weights: tuple[float, ...] = (1.0, 1.0, 1.0),
    packs_per_step: int = 1,
    seed: int = 0,
) -> PackSchedule:
    source_of = np.repeat(np.arange(len(sizes)), sizes)
    lengths = np.random.default_rng(7).integers(5, 30, len(source_of))
    sources = [Source(f"s{i}", weight=weight, name=f"s{i}") for i, weight in enumerate(weights)]
    return PackSchedule(source_of, lengths, sources, 64, seed, mixture, packs_per_step)


def drawn(stream: PackSchedule, first: int, last: int) -> Counter[int]:
    """Samples of each source in packs first to last."""
    bounds = np.cumsum([0, *(len(members) for members in stream.members)])
    samples = [sample for number in range(first, last) for sample in stream.pack(number).samples]
    return Counter(int(np.searchsorted(bounds, sample, side="right")) - 1 for sample in samples)


def first_round(stream: PackSchedule) -> int:
    stream.pack(0)
    return stream._rounds[1].first_pack


def test_a_round_holds_every_sample_by_its_weight() -> None:
    stream = schedule(weights=(1.0, 0.5, 2.0))
    assert drawn(stream, 0, first_round(stream)) == {0: 100, 1: 200, 2: 100}
    twice = Counter(sample for i in range(first_round(stream)) for sample in stream.pack(i).samples)
    assert {twice[sample] for sample in stream.members[2].tolist()} == {2}
    second = stream._rounds[1].first_pack
    stream.pack(second)
    halves = [
        {s for i in range(a, b) for s in stream.pack(i).samples} & set(stream.members[1].tolist())
        for a, b in ((0, second), (second, stream._rounds[2].first_pack))
    ]
    assert not halves[0] & halves[1] and len(halves[0] | halves[1]) == 400  # two halves are a pass


def test_temperature_evens_the_shares_out() -> None:
    stream = schedule(Mixture(temperature=2.0))
    shares = drawn(stream, 0, first_round(stream))
    expected = np.sqrt(SIZES) / np.sqrt(SIZES).sum() * sum(SIZES)
    assert [shares[i] for i in range(3)] == pytest.approx(expected, abs=1)
    nearly_equal = drawn(schedule(Mixture(temperature=1e9)), 0, first_round(schedule(Mixture(temperature=1e9))))
    assert max(nearly_equal.values()) - min(nearly_equal.values()) <= 1


def test_a_curriculum_changes_the_shares_at_its_step() -> None:
    stages = [CurriculumStage(20, {"s1": 0.0, "s2": 0.0}), CurriculumStage(40, {"s0": 0.0})]
    stream = schedule(Mixture(curriculum=stages, round_samples=60), packs_per_step=2)
    assert set(drawn(stream, 0, 40)) == {0}
    assert set(drawn(stream, 40, 80)) == {1, 2}
    assert set(drawn(stream, 80, 300)) == {0, 1, 2}


def test_a_curriculum_skips_no_sample_of_a_pass() -> None:
    """A round that is cut at the end of a stage gives back what it did not deliver."""
    mixture = Mixture(curriculum=[CurriculumStage(7, {"s1": 0.0, "s2": 0.0})], round_samples=33)
    stream = schedule(mixture)
    seen: Counter[int] = Counter()
    number = 0
    while sum(seen.values()) < 100:
        seen.update(s for s in stream.pack(number).samples if s < 100)
        number += 1
    assert len(seen) >= 95 and max(seen.values()) <= 2  # the next pass may begin while a round's last packs wait


@pytest.mark.parametrize("packs_per_step", [1, 3])
def test_unmixed_steps_hold_one_source_with_its_probability(packs_per_step: int) -> None:
    stream = schedule(Mixture(unmixed=True), packs_per_step=packs_per_step)
    count = first_round(stream) // packs_per_step
    told = []
    for step in range(count):
        packs = [stream.pack(step * packs_per_step + i) for i in range(packs_per_step)]
        assert len({pack.source for pack in packs}) == 1
        assert set(drawn(stream, step * packs_per_step, (step + 1) * packs_per_step)) == {int(packs[0].source[1:])}
        told.append((packs[0].source, packs[0].probability))
    for source, probability in told:
        assert probability == pytest.approx(sum(name == source for name, _ in told) / count)
    assert len({source for source, _ in told}) == 3


def test_unmixed_leftovers_come_later() -> None:
    stream = schedule(Mixture(unmixed=True), packs_per_step=4)
    seen = Counter(s for number in range(2000) for s in stream.pack(number).samples)
    assert len(seen) == sum(SIZES)
    for members in stream.members:
        counts = [seen[sample] for sample in members.tolist()]
        assert max(counts) - min(counts) <= 2


@given(
    seed=st.integers(0, 5),
    unmixed=st.booleans(),
    round_samples=st.sampled_from([None, 37, 200]),
    number=st.integers(0, 150),
)
@settings(max_examples=40, deadline=None)
def test_a_pack_is_a_pure_function_of_its_number(seed, unmixed, round_samples, number) -> None:
    mixture = Mixture(unmixed=unmixed, round_samples=round_samples, temperature=1.5)
    walked, jumped = (schedule(mixture, seed=seed) for _ in range(2))
    whole = [walked.pack(i) for i in range(number + 1)]
    assert jumped.pack(number) == whole[number]
    assert walked.pack(0) == whole[0]
    assert all(sum(walked.lengths[choice.samples]) <= 64 for choice in whole)


@pytest.mark.parametrize("mixture", [Mixture(round_samples=60), Mixture(unmixed=True, epochs=6.0)])
def test_seeking_needs_no_earlier_round(mixture: Mixture) -> None:
    walked, sought = (schedule(mixture, packs_per_step=2) for _ in range(2))
    packs = [walked.pack(number) for number in range(400)]
    position = json.loads(json.dumps(walked.position(301)))
    assert position["first_pack"] > 100
    sought.seek(position)
    assert [sought.pack(number) for number in range(301, 400)] == packs[301:]
    assert sought.num_steps() == walked.num_steps()
    assert sought.position(390) == walked.position(390)
    with pytest.raises(ValueError, match=f"expected one from {position['first_pack']} on"):
        sought.pack(3)


def test_budgets_end_the_stream() -> None:
    assert schedule().num_steps() is None
    steps = schedule(Mixture(epochs=1.0)).num_steps()
    assert steps == first_round(schedule())
    assert steps < schedule(Mixture(epochs=2.0)).num_steps() <= 2 * steps + 1
    stream = schedule(Mixture(tokens=3000), packs_per_step=2)
    tokens = sum(int(stream.lengths[stream.pack(i).samples].sum()) for i in range(2 * stream.num_steps()))
    assert 3000 - 2 * 64 <= tokens <= 3000 + 2 * 64


def test_selectors() -> None:
    source = Source("x", tasks=["asr"], where={"language": ["en", "de"], "difficulty": {"max": 0.5}, "clean": True})
    assert source.takes("asr", {"language": "de", "difficulty": 0.5, "clean": True})
    assert not source.takes("qa", {"language": "de", "difficulty": 0.5, "clean": True})
    assert not source.takes("asr", {"language": "fr", "difficulty": 0.1, "clean": True})
    assert not source.takes("asr", {"language": "de", "difficulty": 0.6, "clean": True})
    assert not source.takes("asr", {"language": "de", "difficulty": "0.1", "clean": True})
    assert not source.takes("asr", {"language": "de", "clean": True})
    ranges = ({"max": 0.3}, {"above": 0.3, "below": 0.7}, {"min": 0.7})
    parts = [Source("x", where={"level": allowed}) for allowed in ranges]
    for level in (0.0, 0.3, 0.31, 0.7, 1):
        assert sum(part.takes("asr", {"level": level}) for part in parts) == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Source("x", weight=-1), "weight: expected 0 or a positive number, got -1"),
        (lambda: Source("x", max_samples=0), "max_samples: expected at least 1"),
        (lambda: Source("x", where={"level": {"least": 1}}), r"some of \['above', 'below', 'max', 'min'\], got"),
        (lambda: Mixture(temperature=0), "temperature: expected a positive number"),
        (lambda: Mixture(epochs=1, tokens=1), "epochs or of tokens, got both"),
        (lambda: Mixture(curriculum=[CurriculumStage(3, {}), CurriculumStage(2, {})]), "rising positive 'until'"),
        (lambda: schedule(Mixture(curriculum=[CurriculumStage(3, {"s9": 1})])), r"expected sources .* got \['s9'\]"),
        (lambda: schedule(weights=(0.0, 0.0, 0.0)), "expected a usable sample at step 0, got none"),
        (
            lambda: schedule(Mixture(curriculum=[CurriculumStage(3, dict.fromkeys(("s0", "s1", "s2"), 0.0))])),
            "expected a usable sample at step 0, got none",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@given(st.lists(st.integers(0, 5), max_size=12), st.data())
def test_without_is_a_multiset_difference(samples: list[int], data: st.DataObject) -> None:
    given_back = data.draw(st.permutations(samples)) if samples else []
    taken = list(islice(given_back, data.draw(st.integers(0, len(samples)))))
    left = _without(np.array(samples, dtype=np.int64), np.array(taken, dtype=np.int64)).tolist()
    assert Counter(left) == Counter(samples) - Counter(taken)
