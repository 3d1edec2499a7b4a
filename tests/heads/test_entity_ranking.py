"""Scores of triples, filtered ranks against plain counting, losses, and calls that follow one another."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from heads.embedding import ExactIndex
from heads.entity_ranking import RELATION_MODELS, EntityRankingHead, Relations, mean_ranks, rank_triples
from layers.calls import Call, EmbeddingResult, HeadContext, LabelResult, RankingResult, ResultRef
from layers.head import HeadTarget

SIZE = 6


def plain_score(model: str, head: torch.Tensor, relation: torch.Tensor, tail: torch.Tensor) -> float:
    """As the papers write it."""
    if model == "transe":
        return -float((head + relation - tail).abs().sum())
    if model == "distmult":
        return float((head * relation * tail).sum())
    if model == "complex":
        h, r, t = (torch.complex(*vector.double().chunk(2)) for vector in (head, relation, tail))
        return float((h * r * t.conj()).sum().real)
    (h1, h2), (r1, r2), (t1, t2) = (vector.chunk(2) for vector in (head, relation, tail))
    return float(((h1 * r1 * t2).sum() + (t1 * r2 * h2).sum()) / 2)


@pytest.mark.parametrize("model", RELATION_MODELS)
def test_both_sides_of_a_triple_get_the_score_of_the_paper(model: Any) -> None:
    torch.manual_seed(0)
    relations, entities = Relations(3, SIZE, model), torch.randn(5, SIZE)
    for relation in relations.table.weight.detach():
        expected = torch.tensor([[plain_score(model, h, relation, t) for t in entities] for h in entities])
        vectors = relation.expand(5, SIZE)
        tails = relations.compare(relations.tail_queries(entities, vectors), entities)
        heads = relations.compare(relations.head_queries(entities, vectors), entities)
        torch.testing.assert_close(tails, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(heads.T, expected, atol=1e-5, rtol=1e-5)


def test_equal_scores_share_the_mean_of_best_and_worst_rank() -> None:
    scores = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    none = torch.zeros(2, 5, dtype=torch.bool)
    assert mean_ranks(scores, torch.tensor([1, 4]), none).tolist() == [3.0, 3.0]
    left_out = torch.tensor([[True, True, False, False, False], [True, False, False, False, True]])
    assert mean_ranks(scores, torch.tensor([1, 4]), left_out).tolist() == [2.0, 2.5]


def test_filtered_ranks_equal_plain_counting() -> None:
    """Integer vectors, so that scores are exact and often equal."""
    torch.manual_seed(0)
    names, entities = ("near", "part of"), [f"e{number}" for number in range(9)]
    relations = Relations(2, 4, "distmult")
    with torch.no_grad():
        relations.table.weight.copy_(torch.randint(-1, 2, (2, 4)))
    index = ExactIndex(torch.randint(-1, 2, (9, 4)).float(), entities)
    every = list(product(entities, names, entities))
    holding = [every[place] for place in torch.randperm(len(every))[:40].tolist()]
    asked, known = holding[:15], [*holding[15:], ("e0", "near", "not in the index")]
    found = rank_triples(relations, names, index, asked, known, max_scores=40)

    def score(head: str, relation: str, tail: str) -> float:
        table = relations.table.weight.detach()
        return plain_score(
            "distmult", index.vectors[index.row(head)], table[names.index(relation)], index.vectors[index.row(tail)]
        )

    for row, (head, relation, tail) in enumerate(asked):
        for side in (0, 1):
            own, ranks = score(head, relation, tail), []
            for entity in entities:
                other = (head, relation, entity) if side == 0 else (entity, relation, tail)
                if other == (head, relation, tail) or other not in holding:
                    ranks.append((score(*other), other == (head, relation, tail)))
            best = 1 + sum(value > own for value, _ in ranks)
            worst = sum(value >= own for value, _ in ranks)
            assert float(found[row, side]) == (best + worst) / 2


def test_a_model_that_knows_nothing_gets_the_mean_rank() -> None:
    relations, index = Relations(1, 4, "transe"), ExactIndex(torch.zeros(11, 4), [str(i) for i in range(11)])
    assert rank_triples(relations, ["r"], index, [("3", "r", "4")]).tolist() == [[6.0, 6.0]]
    with pytest.raises(ValueError, match="expected one of r, got 's'"):
        rank_triples(relations, ["r"], index, [("3", "s", "4")])
    with pytest.raises(ValueError, match="one of its 11 items, got 'x'"):
        rank_triples(relations, ["r"], index, [("x", "r", "4")])


def triple_targets(head: EntityRankingHead, *triples: tuple[str, str, str]) -> list[HeadTarget]:
    values: list[dict[str, str]] = []
    for number, (first, relation, last) in enumerate(triples):
        values.append({"group": str(number), "role": "query", "item": first, "relation": relation})
        values.append({"group": str(number), "role": "positive", "item": last})
    return [head.target_processor(value, []) for value in values]


@pytest.mark.parametrize("kind", ["margin", "softplus", "cross_entropy"])
def test_what_holds_in_the_batch_is_no_wrong_answer(kind: Any) -> None:
    torch.manual_seed(0)
    head = EntityRankingHead(SIZE, 4, ["r", "s"], "distmult", loss_kind=kind, margin=0.7)
    triples = [("a", "r", "b"), ("a", "r", "c"), ("d", "s", "b")]
    targets = triple_targets(head, *triples)
    vectors, names = torch.randn(6, 4), [name for first, _, last in triples for name in (first, last)]
    term = head.loss(vectors, targets)
    total = torch.zeros(())
    for number, (first, relation, last) in enumerate(triples):
        r = head.relations.table.weight[head.names.index(relation)]
        for side in (0, 1):
            query, answer = (
                (vectors[2 * number], 2 * number + 1) if side == 0 else (vectors[2 * number + 1], 2 * number)
            )
            scores = vectors @ (query * r)
            wrong = [
                place
                for place, name in enumerate(names)
                if ((first, relation, name) if side == 0 else (name, relation, last)) not in triples
            ]
            if kind == "margin":
                loss = (0.7 - scores[answer] + scores[wrong]).relu().mean()
            elif kind == "softplus":
                loss = (F.softplus(-scores[answer]) + F.softplus(scores[wrong]).mean()) / 2
            else:
                loss = -scores[[answer, *wrong]].log_softmax(0)[0]
            total = total + loss / 2
    torch.testing.assert_close(term.total, total)
    assert term.count == 3
    head.decay = 0.5
    squares = [(vectors[0], vectors[1], 0), (vectors[2], vectors[3], 0), (vectors[4], vectors[5], 1)]
    table = head.relations.table.weight
    decay = sum((h.square().mean() + t.square().mean() + table[r].square().mean()) / 3 for h, t, r in squares)
    torch.testing.assert_close(head.loss(vectors, targets).total, total + 0.5 * decay)


def test_an_entity_is_described_first_and_asked_about_then() -> None:
    torch.manual_seed(0)
    head = EntityRankingHead(SIZE, 4, ["part of", "near"], "transe", top_k=2)
    described = HeadContext(Call("entity", ""))
    (entity,) = head.decode(head(torch.randn(1, SIZE), [1], [described]), [described])
    assert isinstance(entity, EmbeddingResult) and float(entity.vector.norm()) == pytest.approx(1)
    asked = HeadContext(Call("related", "part  of", (ResultRef(0),)), earlier_results=[entity])
    inverse = HeadContext(Call("related", "inverse of near", (ResultRef(0),)), earlier_results=[entity])
    predictions = head(None, [0, 0], [asked, inverse])
    with pytest.raises(ValueError, match="prime the head with it, got none"):
        head.decode(predictions, [asked, inverse])
    vectors = F.normalize(torch.randn(5, 4), dim=-1)
    head.prime(ExactIndex(vectors, list("abcde")))
    tails, heads = head.decode(predictions, [asked, inverse])
    table = head.relations.table.weight.detach()
    expected = (entity.vector + table[0] - vectors).abs().sum(1).argsort()[:2]
    assert isinstance(tails, RankingResult) and tails.items == tuple("abcde"[row] for row in expected)
    expected = (vectors + table[1] - entity.vector).abs().sum(1).argsort()[:2]
    assert isinstance(heads, RankingResult) and heads.items == tuple("abcde"[row] for row in expected)


def test_calls_that_lack_something_say_what() -> None:
    head = EntityRankingHead(SIZE, 4, ["near"])
    head.prime(ExactIndex(torch.eye(4), list("abcd")))
    odd = HeadContext(Call("related", "near", (ResultRef(0),)), earlier_results=[LabelResult(Call("x", ""), "x")])
    with pytest.raises(ValueError, match="expected an embedding, got a LabelResult"):
        head(None, [0], [odd])
    unknown = HeadContext(Call("entity", "far"))
    with pytest.raises(ValueError, match="expected one of near, got 'far'"):
        head.decode(torch.eye(4)[:1], [unknown])
    for value, told in (
        ({"group": "1", "role": "query", "relation": "near"}, "name of the entity"),
        ({"group": "1", "role": "query", "item": "a"}, "pair relation: expected a text"),
        ({"group": "1", "role": "query", "item": "a", "relation": "far"}, "one of near, got 'far'"),
    ):
        with pytest.raises(ValueError, match=told):
            head.target_processor(value, [])
    with pytest.raises(ValueError, match="an even width, got 1 of width 5"):
        EntityRankingHead(SIZE, 5, ["near"], "complex")
