"""Pasts of conversations: what is found again, and what is forgotten."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from inference.past import Past, PastStore, common_length, join_pasts, shared_prefixes

rows = st.lists(st.integers(0, 2), max_size=12).map(tuple)


def past(length: int, seed: int = 0) -> Past:
    generator = torch.Generator().manual_seed(seed)
    layers = tuple(torch.randn(2, length, 4, generator=generator) for _ in range(3))
    return Past(layers, tuple(-layer for layer in layers))


@given(first=rows, second=rows)
def test_the_common_length_is_that_of_the_longest_common_beginning(first, second):
    length = common_length(first, second)
    assert first[:length] == second[:length]
    assert length == min(len(first), len(second)) or first[length] != second[length]


@given(batch=st.lists(rows.filter(len), min_size=1, max_size=6), groups=st.lists(st.integers(0, 1), min_size=6))
def test_shared_prefixes_leave_every_row_something_to_read(batch, groups):
    found = shared_prefixes(batch, groups[: len(batch)], 2)
    members = [row for rows, _ in found for row in rows]
    assert len(members) == len(set(members))
    for rows, length in found:
        assert len(rows) > 1 and len({groups[row] for row in rows}) == 1 and length >= 2
        assert len({batch[row][:length] for row in rows}) == 1
        assert all(len(batch[row]) > length for row in rows)


def test_a_joined_cache_is_padded_at_the_left():
    one, two = past(2, 1), past(5, 2)
    cache, mask = join_pasts([one, None, two])
    assert mask.tolist() == [[0, 0, 0, 1, 1], [0] * 5, [1] * 5]
    assert cache.get_seq_length() == 5 and len(cache.layers) == 3
    assert torch.equal(cache.layers[1].keys[0, :, 3:], one.keys[1]) and not cache.layers[1].keys[1].any()
    again = Past.of(cache, 0, mask[0].bool())
    assert all(torch.equal(a, b) for a, b in zip(again.values, one.values, strict=True))


def test_the_longest_known_beginning_is_found():
    store = PastStore(100)
    short, long = past(3), past(6)
    store.add((1, 2, 3), short)
    store.add((1, 2, 9, 9, 9, 9), long)
    found = store.find((1, 2, 9, 9, 7))
    assert found is not None and found.length == 4 and torch.equal(found.keys[0], long.keys[0][:, :4])
    assert store.find((5, 2)) is None
    whole = store.find((1, 2, 3))
    assert whole is not None and whole.length == 2, "the last position is always read, its state is needed"


def test_a_past_replaces_those_that_it_continues_and_the_oldest_go_first():
    store = PastStore(10)
    store.add((1, 2, 3), past(3))
    store.add((1, 2, 3, 4, 5), past(5))
    assert store.num_positions == 5
    store.add((7, 7, 7, 7), past(4))
    assert store.find((1, 2, 3, 4, 5, 6)) is not None  # used last
    store.add((8, 8, 8), past(3))
    assert store.num_positions == 8 and store.find((7, 7, 7)) is None
    store.add(tuple(range(11)), past(11))
    assert store.num_positions == 8, "what is longer than the store does not empty it"
