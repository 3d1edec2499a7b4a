"""Pooling, InfoNCE in one and in several processes, experts, pairs, and the index."""

from __future__ import annotations

import copy
import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from heads.embedding import EmbeddingHead, ExactIndex, PairScoreHead
from heads.embedding.contrast import Temperature, shared_sum
from heads.embedding.experts import DomainExperts
from heads.embedding.pooling import Pooling
from heads.entity_ranking import EntityRankingHead
from layers.calls import Call, EmbeddingResult, HeadContext, RankingResult
from layers.head import Head, HeadTarget

SIZE = 6


def contexts(count: int, task: str = "embed", episode: str = "") -> list[HeadContext]:
    return [HeadContext(Call(task, ""), episode=episode) for _ in range(count)]


def targets_of(head: Head, *values: dict[str, Any]) -> list[HeadTarget]:
    return [head.target_processor(value, []) for value in values]


def in_batch(groups: int, negatives: int = 0) -> list[dict[str, Any]]:
    """Per group a query, its positive and its hard negatives, in this order."""
    roles = ["query", "positive", *["negative"] * negatives]
    return [{"group": str(group), "role": role} for group in range(groups) for role in roles]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("last", lambda x: x[-1]),
        ("first", lambda x: x[0]),
        ("mean", lambda x: x.mean(0)),
        ("prompt", lambda x: x[:-1].mean(0)),
        ("weighted", lambda x: (torch.arange(1, len(x) + 1)[:, None] * x).sum(0) / sum(range(1, len(x) + 1))),
    ],
)
def test_pooling_of_ragged_states(kind: Any, expected: Any) -> None:
    torch.manual_seed(0)
    rows = [torch.randn(length, SIZE) for length in (3, 2, 5)]
    pooled = Pooling(SIZE, kind)(torch.cat(rows), [3, 2, 5])
    torch.testing.assert_close(pooled, torch.stack([expected(row) for row in rows]))


def test_learned_attention_pools_and_begins_as_the_mean() -> None:
    torch.manual_seed(0)
    pooling, rows = Pooling(SIZE, "attention"), [torch.randn(length, SIZE) for length in (3, 1, 5)]
    torch.testing.assert_close(pooling(torch.cat(rows), [3, 1, 5]), torch.stack([row.mean(0) for row in rows]))
    torch.nn.init.normal_(pooling.query)
    pooled = pooling(torch.cat(rows), [3, 1, 5])
    weights = (F.layer_norm(rows[2], (SIZE,)) @ pooling.query / SIZE**0.5).softmax(0)
    torch.testing.assert_close(pooled[2], weights @ rows[2])


def test_pooling_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="expected one of last, first"):
        Pooling(SIZE, "max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 2 states per call, got 1; the task must pass its prompt's states"):
        Pooling(SIZE, "prompt")(torch.randn(3, SIZE), [2, 1])
    with pytest.raises(ValueError, match="at least 1 states per call, got 0"):
        Pooling(SIZE)(torch.randn(3, SIZE), [3, 0])


@pytest.mark.parametrize("negatives", [0, 1, 3])
def test_the_loss_is_the_cross_entropy_of_cosines_over_in_batch_and_hard_negatives(negatives: int) -> None:
    """As MultipleNegativesRankingLoss of sentence-transformers: scale 20, positives first, then the hard negatives."""
    torch.manual_seed(0)
    head = EmbeddingHead(SIZE, 4, temperature=0.05)
    values = in_batch(5, negatives)
    vectors = head(torch.randn(len(values), SIZE), [1] * len(values), contexts(len(values)))
    term = head.loss(vectors, targets_of(head, *values))
    columns = vectors.view(5, 2 + negatives, 4).transpose(0, 1)
    scores = F.cosine_similarity(columns[0][:, None], columns[1:].flatten(0, 1)[None], dim=-1) * 20
    torch.testing.assert_close(term.total / term.count, F.cross_entropy(scores, torch.arange(5)))
    assert term.count == 5
    assert int(term.parts["top1"]) == int((scores.argmax(1) == torch.arange(5)).sum())
    head.symmetric = True
    both = (F.cross_entropy(scores, torch.arange(5)) + F.cross_entropy(scores[:, :5].T, torch.arange(5))) / 2
    torch.testing.assert_close(head.loss(vectors, targets_of(head, *values)).total / 5, both)


def test_passages_of_the_same_item_are_no_negatives() -> None:
    torch.manual_seed(0)
    head = EmbeddingHead(SIZE, 4)
    values = in_batch(3)
    for place in (0, 1, 2, 3):  # the first two groups are about one item
        values[place]["item"] = "a"
    vectors = F.normalize(torch.randn(6, 4), dim=-1)
    scores = vectors[::2] @ vectors[1::2].T * 20
    scores[0, 1] = scores[1, 0] = float("-inf")
    expected = F.cross_entropy(scores, torch.arange(3), reduction="sum")
    torch.testing.assert_close(head.loss(vectors, targets_of(head, *values)).total.detach(), expected)


def test_several_positives_of_a_query_count_alike() -> None:
    torch.manual_seed(0)
    head = EmbeddingHead(SIZE, 4, temperature=0.5)
    roles = ("query", "positive", "positive", "negative")
    vectors = F.normalize(torch.randn(4, 4), dim=-1)
    scores = (vectors[0] @ vectors[1:].T) / 0.5
    expected = [-scores[[p, 2]].log_softmax(0)[0] for p in (0, 1)]
    term = head.loss(vectors, targets_of(head, *({"group": "a", "role": role} for role in roles)))
    torch.testing.assert_close(term.total.detach(), torch.stack(expected).mean())


def test_a_query_without_its_positive_is_named() -> None:
    head = EmbeddingHead(SIZE, 4)
    values = [{"group": "a", "role": "query"}, {"group": "b", "role": "positive"}]
    with pytest.raises(ValueError, match="a query without"):
        head.loss(torch.randn(2, 4), targets_of(head, *values))


@pytest.mark.parametrize(
    "value", [None, "a", {"group": "a"}, {"group": "a", "role": "friend"}, {"group": 1, "role": "query"}]
)
def test_pairs_that_are_none_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"pair (group|role)"):
        EmbeddingHead(SIZE, 4).target_processor(value, [])


def test_the_temperature_is_learned_within_bounds() -> None:
    fixed, learned = Temperature(0.05), Temperature(0.05, learned=True)
    like = torch.zeros(1)
    assert not list(fixed.parameters()) and float(fixed.scale(like)) == learned.scale(like).item() == pytest.approx(20)
    with torch.no_grad():
        learned.log_scale.fill_(20.0)
    assert learned.scale(like).item() == pytest.approx(100)
    with pytest.raises(ValueError, match=r"0.01 or more if learned, got 0.001"):
        Temperature(0.001, learned=True)


def test_losses_in_chunks_have_the_same_gradient() -> None:
    torch.manual_seed(0)
    rows, own = torch.randn(7, 3, requires_grad=True), torch.arange(7) < 5

    def losses(part: Tensor, mine: bool) -> Tensor:
        return (rows[part] @ rows.T).logsumexp(1)

    whole = shared_sum(losses, own)
    chunked = shared_sum(losses, own, chunk=2)
    torch.testing.assert_close(whole, chunked)
    torch.testing.assert_close(*(torch.autograd.grad(total, rows)[0] for total in (whole, chunked)))
    torch.testing.assert_close(whole, losses(torch.arange(5), True).sum())


def _embed_head() -> Head:
    return EmbeddingHead(SIZE, 4, hidden_size=8, learn_temperature=True, symmetric=True).double()


def _entity_head() -> Head:
    return EntityRankingHead(SIZE, 4, ["r", "s"], "simple", decay=0.1, loss_kind="cross_entropy").double()


def _values(head: Head) -> list[dict[str, Any]]:
    if isinstance(head, EmbeddingHead):
        return in_batch(5, 1)
    ends = [("a", "r", "b"), ("a", "r", "c"), ("b", "s", "d"), ("c", "s", "a"), ("d", "r", "b")]
    made = []
    for number, (first, relation, last) in enumerate(ends):
        made += [
            {"group": str(number), "role": "query", "item": first, "relation": relation},
            {"group": str(number), "role": "positive", "item": last},
            {"group": str(number), "role": "negative", "item": "z"},
        ]
    return made


def _gradients(head: Head, states: Tensor, part: slice) -> tuple[float, int, list[Tensor]]:
    """Loss, count and gradients of the calls of some groups."""
    values = _values(head)[part]
    own = states[part].clone().requires_grad_()
    term = head.loss(head(own, [1] * len(values), contexts(len(values))), targets_of(head, *values))
    own_gradient, *grads = torch.autograd.grad(term.total, [own, *head.parameters()], allow_unused=not values)
    return float(term.total.detach()), term.count, [torch.zeros_like(own) if not values else own_gradient, *grads]


_PARTS = (slice(0, 6), slice(6, 15), slice(15, 15))  # of two groups, of three, and of none


def _worker(rank: int, folder: Path, head: Head, states: Tensor) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", store, rank=rank, world_size=3, timeout=timedelta(seconds=60))
    torch.save(_gradients(head, states, _PARTS[rank]), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("build", [_embed_head, _entity_head])
def test_processes_together_have_the_loss_and_the_gradient_of_one(build: Any, tmp_path: Path) -> None:
    """Three processes, one of them without calls; each parameter's gradients add up, each call's is its own."""
    torch.manual_seed(0)
    head, states = build(), torch.randn(15, SIZE, dtype=torch.float64)
    loss, count, grads = _gradients(copy.deepcopy(head), states, slice(0, 15))
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_worker, args=(rank, tmp_path, head, states)) for rank in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    assert sum(item[0] for item in found) == pytest.approx(loss, abs=1e-12)
    assert [item[1] for item in found] == [2, 3, 0] and count == 5
    torch.testing.assert_close(torch.cat([item[2][0] for item in found]), grads[0])
    for number in range(1, len(grads)):
        torch.testing.assert_close(sum(item[2][number] for item in found), grads[number])


def test_experts_are_chosen_by_the_task_and_begin_alike() -> None:
    torch.manual_seed(0)
    experts = DomainExperts(SIZE, ["one", "two"])
    states = torch.randn(5, SIZE)
    first = experts(states, [2, 3], ["one", "one"])
    torch.testing.assert_close(first, experts(states, [2, 3], ["two", "one"]))
    experts(states, [2, 3], ["two", "two"]).sum().backward()
    assert all(p.grad is None for p in experts.experts[0].parameters())
    assert all(p.grad is not None for p in experts.experts[1].parameters())
    with torch.no_grad():
        experts.experts[1][0].weight.normal_()
    changed = experts(states, [2, 3], ["two", "one"])
    assert not torch.allclose(changed[:2], first[:2]) and torch.equal(changed[2:], first[2:])
    head = EmbeddingHead(SIZE, 4, domains=["one"])
    with pytest.raises(ValueError, match="expected some of one, got 'other'"):
        head(torch.randn(1, SIZE), [1], contexts(1, "other"))


def test_search_is_exact_whatever_the_chunks() -> None:
    torch.manual_seed(0)
    vectors = torch.randint(-2, 3, (50, 3)).float()  # many equal scores
    index, queries = ExactIndex(vectors, [f"i{row}" for row in range(50)]), torch.randint(-2, 3, (9, 3)).float()
    scores = queries @ vectors.T
    order = sorted
    expected = [order(range(50), key=lambda row, q=q: (-float(scores[q, row]), row))[:7] for q in range(9)]
    for chunk in (1, 4, 7, 49, 50, 99):
        found, rows = index.search(queries, 7, chunk=chunk)
        assert rows.tolist() == expected
        torch.testing.assert_close(found, scores.gather(1, rows))
    assert index.search(queries, 60)[1].shape == (9, 50)


def test_an_index_is_saved_loaded_and_extended(tmp_path: Path) -> None:
    index = ExactIndex(torch.eye(3), ["a", "b", "ü\n"])
    index.save(tmp_path / "index.safetensors")
    again = ExactIndex.load(tmp_path / "index.safetensors")
    assert again.items == index.items and torch.equal(again.vectors, index.vectors) and again.row("b") == 1
    larger = again.with_items(torch.full((1, 3), 2.0), ["d"])
    assert larger.search(torch.ones(1, 3), 1)[1].tolist() == [[3]] and "d" in larger and "d" not in again
    with pytest.raises(ValueError, match="one of its 3 items, got 'z'"):
        index.row("z")


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="different items, got 'a' twice"):
        ExactIndex(torch.eye(2), ["a", "a"])
    with pytest.raises(ValueError, match=r"a vector per item \(M, d\), got \(2, 2\) of 1"):
        ExactIndex(torch.eye(2), ["a"])
    with pytest.raises(ValueError, match="one of 'b' that is not"):
        ExactIndex(torch.tensor([[1.0], [float("nan")]]), ["a", "b"])
    with pytest.raises(ValueError, match=r"k >= 1 and queries \(n, 2\), got 0"):
        ExactIndex(torch.eye(2), ["a", "b"]).search(torch.eye(2), 0)
    (tmp_path / "broken").write_bytes(b"x" * 20)
    with pytest.raises(ValueError, match="expected an index of vectors and items"):
        ExactIndex.load(tmp_path / "broken")


def test_a_primed_head_ranks_the_items_of_its_episode() -> None:
    head = EmbeddingHead(SIZE, 2, top_k=2)
    vectors = F.normalize(torch.tensor([[1.0, 0.1], [0.0, 1.0]]), dim=-1)
    shared, own = ExactIndex(torch.eye(2), ["x", "y"]), ExactIndex(-torch.eye(2), ["-x", "-y"])
    head.prime(shared)
    head.prime(own, "own")
    asked = [*contexts(2), *contexts(1, episode="own")]
    first, second, third = head.decode(torch.cat([vectors, vectors[:1]]), asked)
    assert isinstance(first, RankingResult) and first.items == ("x", "y") and first.scores[0] > first.scores[1]
    assert second.items == ("y", "x") and third.items == ("-y", "-x")
    head.reset("own")
    assert head.decode(vectors[:1], asked[2:])[0].items == ("x", "y")
    head.reset()
    assert isinstance(head.decode(vectors[:1], asked[:1])[0], EmbeddingResult)
    with pytest.raises(ValueError, match="expected an index of width 2, got one of width 3"):
        head.prime(ExactIndex(torch.eye(3), ["a", "b", "c"]))


def test_pairs_learn_from_labels_and_from_a_teacher() -> None:
    torch.manual_seed(0)
    head = PairScoreHead(SIZE, 4, ["no", "yes"], pair_size=8, distillation=0.25)
    vectors = torch.randn(6, 4)
    values = [
        {"group": "a", "role": "query", "label": "yes", "teacher": [0.5, -1.0]},
        {"group": "b", "role": "positive"},
        {"group": "a", "role": "positive"},
        {"group": "b", "role": "query", "teacher": [2.0, 1.0]},
        {"group": "c", "role": "query", "label": "no"},
        {"group": "c", "role": "positive"},
    ]
    term = head.loss(vectors, targets_of(head, *values))
    u, v = vectors[[0, 3, 4]], vectors[[2, 1, 5]]
    logits = head.compare(torch.cat([u, v, u * v, (u - v).abs()], dim=1))
    task = F.cross_entropy(logits[[0, 2]], torch.tensor([1, 0]), reduction="sum")
    distance = (logits[:2] - torch.tensor([[0.5, -1.0], [2.0, 1.0]])).square().sum()
    torch.testing.assert_close(term.total, 0.75 * task + 0.25 * distance)
    assert term.count == 3
    with pytest.raises(ValueError, match="expected 2 scores, got"):
        targets_of(head, {"group": "a", "role": "query", "teacher": [1.0]})
    with pytest.raises(ValueError, match="of a query, got neither"):
        targets_of(head, {"group": "a", "role": "query"})
    with pytest.raises(ValueError, match="expected one of no, yes, got 'maybe'"):
        targets_of(head, {"group": "a", "role": "query", "label": "maybe"})


def test_candidates_are_ranked_by_the_scores_of_their_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head = PairScoreHead(SIZE, 4, ["no", "yes"], pair_size=8, top_k=3)
    queries, items = torch.randn(5, 4), torch.randn(7, 4)
    expected = torch.stack([head.logits(q.expand(7, 4), items).log_softmax(1)[:, 1] for q in queries])
    torch.testing.assert_close(head.score(queries, items), expected)
    monkeypatch.setattr("heads.embedding.pairs._PAIRS", 7 * 16 * 2)
    torch.testing.assert_close(head.score(queries, items), expected)
    head.prime(ExactIndex(items, list("abcdefg")))
    (result,) = head.decode(queries[:1], contexts(1))
    assert result.items == tuple("abcdefg"[row] for row in expected[0].argsort(descending=True)[:3])
    scores = PairScoreHead(SIZE, 4, pair_size=8)
    assert scores.score(queries, items).shape == (5, 7)
