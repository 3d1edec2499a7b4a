"""The corpus as a constraint: the index against brute force, the prefix tree, and the scores of documents."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from routers.retrieve import NgramIndex, PrefixConstraint, PrefixTree, ScoredNgram, ngram_weight, score_documents

documents = st.lists(st.lists(st.integers(0, 3), max_size=8), min_size=1, max_size=5)


def places(corpus: list[list[int]], ngram: list[int]) -> list[tuple[int, int]]:
    """(document, place) of every occurrence, by looking everywhere."""
    return [
        (number, start)
        for number, document in enumerate(corpus)
        for start in range(len(document) - len(ngram) + 1)
        if document[start : start + len(ngram)] == ngram
    ]


@settings(max_examples=60, deadline=None)
@given(corpus=documents, ngram=st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_the_index_finds_what_brute_force_finds(corpus, ngram):
    index = NgramIndex(corpus)
    found = places(corpus, ngram)
    assert index.count(ngram) == len(found)
    assert index.documents(ngram) == sorted({number for number, _ in found})
    following = {corpus[n][s + len(ngram)] for n, s in found if s + len(ngram) < len(corpus[n])}
    assert set(index.allowed(index.find(ngram))) == following
    assert set(index.allowed(index.start())) == {token for document in corpus for token in document}


def test_nothing_continues_across_documents():
    index = NgramIndex([[1, 2], [3]])
    assert index.allowed(index.find([2])) == [] and index.count([2, 3]) == 0
    with pytest.raises(ValueError, match="document 1: expected token ids from 0 on, got -2"):
        NgramIndex([[1], [-2]])


def test_a_prefix_tree_is_its_sequences():
    tree = PrefixTree([[1, 2], [1, 3, 4], [1]])
    state = tree.step(tree.start(), 1)
    assert tree.allowed(tree.start()) == [1] and sorted(tree.allowed(state)) == [2, 3]
    assert tree.ends(state) and not tree.ends(tree.step(state, 3)) and not tree.ends(tree.start())
    with pytest.raises(ValueError, match="at least one token"):
        PrefixTree([[1], []])


@pytest.mark.parametrize("again", [False, True])
def test_random_logits_write_sequences_of_the_set_alone(again):
    sequences = [[5, 6], [5, 7, 8], [9]]
    generator = torch.Generator().manual_seed(0)
    constraint = PrefixConstraint(PrefixTree(sequences), 6, end_id=0, again=again)
    replies: list[list[int]] = [[] for _ in range(6)]
    for step in range(12):
        if step == 6:
            constraint.keep([4, 1, 1])
            replies = [replies[4], replies[1], list(replies[1])]
        logits = torch.randn(len(replies), 12, generator=generator)
        tokens = constraint.mask(logits).argmax(-1).tolist()
        constraint.advance(tokens)
        for reply, token in zip(replies, tokens, strict=True):
            reply.append(token)
    for reply in replies:
        parts, part = [], []
        for token in reply:
            if token == 0:
                parts.append(part)
                part = []
            else:
                part.append(token)
        written = [part for part in parts if part]
        assert all(part in sequences for part in written) and written
        assert again or len(written) == 1
    with pytest.raises(ValueError, match="reply 0: expected one of the tokens that continue a sequence, got 11"):
        constraint.advance([11, None, None])


def test_sequences_end_at_the_limit():
    index = NgramIndex([[1, 2, 1, 2, 1, 2]])
    constraint = PrefixConstraint(index, 1, end_id=0, max_tokens=3)
    for token in (1, 2, 1):
        assert token in constraint.allowed(0)
        constraint.advance([token])
    assert constraint.allowed(0) == [0]


def test_documents_are_scored_by_what_the_question_makes_likelier():
    index = NgramIndex([[1, 2, 3], [1, 2, 4], [5, 6]])
    weight = ngram_weight(math.log(0.5), index.count([3]), index.num_tokens)
    alone = (1 + 5) / (8 + 5)
    assert weight == pytest.approx(math.log(0.5 * (1 - alone) / (alone * 0.5)) if alone < 0.5 else 0.0, abs=1e-6)
    found = score_documents([ScoredNgram((1, 2), -0.1), ScoredNgram((3,), -0.2)], index, smoothing=0.0)
    assert [document for document, _ in found] == [0, 1], "both hold 1 2, and one of them 3 besides"
    w12 = ngram_weight(-0.1, 2, 8, 0.0) ** 2
    w3 = ngram_weight(-0.2, 1, 8, 0.0) ** 2
    assert dict(found)[0] == pytest.approx(w12 + w3) and dict(found)[1] == pytest.approx(w12)
    overlapping = score_documents([ScoredNgram((1, 2), -0.1), ScoredNgram((2, 3), -0.1)], index, smoothing=0.0)
    covered = ngram_weight(-0.1, 1, 8, 0.0) ** 2
    assert dict(overlapping)[0] == pytest.approx(covered + w12 * (0.2 + 0.8 * 0.5)), "half of it is covered already"
    assert score_documents([ScoredNgram((9,), -0.1)], index) == []
