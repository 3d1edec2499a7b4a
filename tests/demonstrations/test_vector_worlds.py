"""The made worlds of the demonstrations of heads are what their words say."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from demonstrations.heads import (
    dense_retrieval,
    distilled_pairs,
    domain_experts,
    ground_resolution,
    inductive_entities,
    pointing_at_hulls,
)
from heads.generation.resolution import level_of


def test_queries_share_no_word_with_their_passages_and_the_third_domain_has_no_pairs() -> None:
    world, rng = dense_retrieval.World(0), np.random.default_rng(0)
    query, passage = (set(text.split()) for text in world.pair(2, rng))
    assert len(query) == 4 and len(passage) == 6 and not query & passage
    other = dict(zip(world.words[0, 2], world.words[1, 2], strict=True))
    assert {other[word] for word in query} <= passage
    unseen = set(world.words[:, 2].flatten())
    for sides in dense_retrieval.pairs(world, 20, rng):
        assert [side.value["role"] for side in sides] == ["query", "positive"]
        assert not unseen & {word for side in sides for word in side.text.split()}
    assert any(unseen & set(example.question.split()) for example in world.pretraining(rng))


def test_both_words_of_a_concept_stand_for_the_same() -> None:
    world, like = dense_retrieval.World(0), dict[str, set[str]]()
    for example in islice(world.pretraining(np.random.default_rng(0)), 600):
        for told in f"{example.question} {example.answer}".split(", ")[1:]:
            left, right = told.strip().split(" is ")
            name, attributes = (right, left) if " " in left else (left, right)
            assert like.setdefault(name, set(attributes.split())) == set(attributes.split())
    assert set(like) == set(world.words.flatten())
    assert all(like[a] == like[b] for a, b in zip(*world.words.reshape(2, -1).tolist(), strict=True))
    assert len({tuple(sorted(found)) for found in like.values()}) == len(like) / 2  # and no two concepts are alike


def test_things_are_alike_in_one_domain_only() -> None:
    world, rng = domain_experts.World(0), np.random.default_rng(0)
    for domain in range(3):
        shared = [set(a.split()) & set(b.split()) for a, b in (world.pair(domain, 7, rng) for _ in range(50))]
        assert all(world.words[domain, 7] in words for words in shared)
        assert np.mean([len(words) for words in shared]) < 1.3


def test_pairs_mean_the_same_if_their_things_are_the_same_in_order() -> None:
    world = distilled_pairs.World(0)
    thing = {name: number for names in world.names for number, name in enumerate(names)}
    pairs = list(world.pairs(400, np.random.default_rng(0)))
    for first, second, same in pairs:
        assert ([thing[w] for w in first.split()] == [thing[w] for w in second.split()]) == same
    turned = distilled_pairs.noisy(pairs, np.random.default_rng(1))
    assert np.mean([a[2] != b[2] for a, b in zip(pairs, turned, strict=True)]) == pytest.approx(0.2, abs=0.06)


def test_new_entities_are_in_no_triple_of_training() -> None:
    world = inductive_entities.World(0)
    assert len(world.facts) == inductive_entities.ENTITIES and len(world.new) == inductive_entities.NEW
    seen, new = world.of(False), world.of(True)
    assert all(world.holds(*triple) for triple in world.triples) and len(new) >= inductive_entities.TEST
    assert not world.new & {end for head, _, tail in seen for end in (head, tail)}
    assert all(world.new & {head, tail} for head, _, tail in new)
    assert len({world.text(entity) for entity in range(len(world.facts))}) == len(world.facts)
    words = {world.text(entity).split()[0]: fact[2] for entity, fact in enumerate(world.facts)}
    assert sorted(words.values()) == [kind for kind in range(4) for _ in range(4)]  # a word has one kind, a kind four


def test_hulls_are_told_counter_clockwise_from_the_first_point() -> None:
    points = np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    assert pointing_at_hulls.hull(points) == [1, 4, 2, 3]
    assert pointing_at_hulls.area(points, [1, 4, 2, 3]) == pytest.approx(1)
    assert pointing_at_hulls.area(points, [3, 4, 1, 2]) == 0  # it crosses itself
    assert pointing_at_hulls.area(points, [1, 4, 2]) == pytest.approx(0.5)
    assert pointing_at_hulls.area(points, [1, 2]) == pointing_at_hulls.area(points, [1, 2, 2]) == 0


def test_a_table_of_positions_learns_from_any_number_of_points() -> None:
    torch.manual_seed(0)
    table = pointing_at_hulls.TableOfPositions()
    points, wanted = pointing_at_hulls.batch(np.random.default_rng(0), 7)
    assert table(points[:3], torch.zeros(3, 4, dtype=torch.int64)).shape == (3, 4, pointing_at_hulls.LARGEST + 1)
    chosen = table.choose(points[:5])
    assert len(chosen) == 5 and all(place < 7 for row in chosen for place in row) and len(wanted[0]) >= 3


def test_ground_is_seen_at_the_resolution_that_a_prompt_names() -> None:
    painter = ground_resolution.Painter(0)
    _, contexts = painter.asked([0, 1, 2, 3], [0, 1, 2, None])
    levels = [level_of(context, painter.head.resolution) for context in contexts]
    assert levels == [(14, "forest"), (pytest.approx(15.415, abs=1e-3), "fields"), (17, "town"), (0, "lakes")]
    land = torch.arange(256).to(torch.uint8).expand(3, 256, 256)
    for metres in ground_resolution.METRES:
        image = ground_resolution.view(land, metres, np.random.default_rng(3)).float()
        steps = torch.cat([image.diff(dim=1).flatten(), image.diff(dim=2).flatten()]).abs()
        assert image.shape == (3, 32, 32) and steps[steps > 0].mode().values == metres
