"""Rankings by vectors that were logged one by one, against the metrics on whole tables and the head's own ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.benchmarks.catalog import CatalogBenchmark
from eval.metrics.retrieval import retrieval_recall
from eval.metrics.verification import equal_error_rate
from eval.prediction import Prediction
from heads.embedding import ExactIndex
from heads.entity_ranking import INVERSE, EntityRankingHead
from inference.files import encode_vector
from tests.eval.benchmarks.test_catalogue import made, rows_of


def embedded(row: Prediction, vector: torch.Tensor, **more: str) -> Prediction:
    return replace(row, results=[{"type": "embedding", "float32": encode_vector(vector), **more}])


def values_of(benchmark: CatalogBenchmark, rows: list[Prediction]) -> dict[str, float]:
    scores = benchmark.score(iter(rows))
    return {metric.removeprefix(f"{benchmark.name}/"): score.value for metric, score in scores.items()}


def test_recall_is_that_of_the_table_of_cosines(tmp_path: Path) -> None:
    benchmark = made("flickr30k_vectors", tmp_path)
    rows = rows_of(benchmark)
    assert [row.key for row in rows[:3]] == ["image/0", "text/0/0", "text/0/1"]
    vectors = torch.randn(len(rows), 5, generator=torch.Generator().manual_seed(1))
    replies = [embedded(row, 3 * vector) for row, vector in zip(rows, vectors, strict=True)]  # lengths do not matter
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    is_image = torch.tensor([row.meta["role"] == "image" for row in rows])
    table = (unit[is_image] @ unit[~is_image].T).numpy()
    texts = retrieval_recall(table, {image: [2 * image, 2 * image + 1] for image in range(4)})
    images = retrieval_recall(table.T, {text: [text // 2] for text in range(8)})
    values = values_of(benchmark, replies)
    assert values == pytest.approx({f"i2t_r{k}": texts[k] for k in texts} | {f"t2i_r{k}": images[k] for k in images})
    assert 0 < values["i2t_r5"] < 1 or 0 < values["t2i_r1"] < 1
    assert values_of(benchmark, replies[::-1]) == pytest.approx(values)


def test_what_has_no_vector_finds_nothing_and_is_not_found(tmp_path: Path) -> None:
    benchmark = made("flickr30k_vectors", tmp_path)
    gold = [benchmark.gold(row) for row in rows_of(benchmark)]
    lost = [replace(row, results=[None]) if row.key == "image/0" else row for row in gold]
    values = values_of(benchmark, lost)
    assert values["i2t_r1"] == pytest.approx(3 / 4) and values["t2i_r10"] == pytest.approx(6 / 8)
    assert benchmark.answer(lost[0]).status == "no vector"
    broken = embedded(gold[0], torch.tensor([1.0, float("nan")]))
    assert benchmark.answer(broken).status == "a vector that is not finite"
    with pytest.raises(ValueError, match=r"one width to compare them, got widths \[3, 64\]"):
        benchmark.score([embedded(gold[0], torch.ones(3)), *gold[1:]])
    part = benchmark.score(gold[:1])["flickr30k_vectors/i2t_r1"]
    assert part.na.startswith("no image was asked together") and part.n == 1
    assert all(score.corpus for score in benchmark.score(gold).values()), "on a part it means nothing"


def test_verification_is_that_of_the_trials(tmp_path: Path) -> None:
    benchmark = made("voxceleb_vectors", tmp_path)
    rows = rows_of(benchmark)
    assert [row.key for row in rows] == ["a/1.wav", "a/2.wav", "b/1.wav", "b/2.wav", "c/1.wav"], "every clip once"
    vectors = torch.randn(5, 3, generator=torch.Generator().manual_seed(4)).double()
    unit = torch.nn.functional.normalize(vectors.float().double(), dim=1)
    trials = [(0, 1, True), (0, 2, False), (2, 3, True), (3, 4, False)]
    expected = equal_error_rate([float(unit[a] @ unit[b]) for a, b, _ in trials], [match for *_, match in trials])
    replies = [embedded(row, vector.float()) for row, vector in zip(rows, vectors, strict=True)]
    assert values_of(benchmark, replies)["eer"] == pytest.approx(expected)
    assert values_of(benchmark, [benchmark.gold(row) for row in rows])["eer"] == 0.0
    lost = [replace(row, results=[None]) if row.key == "a/1.wav" else benchmark.gold(row) for row in rows]
    assert values_of(benchmark, lost)["eer"] == pytest.approx(0.5), "both of its trials are the worst"
    score = benchmark.score([benchmark.gold(row) for row in rows[:4]])["voxceleb_vectors/eer"]
    assert score.n == 4 and "1 trials with a clip that was not asked are left out" in score.protocol


@pytest.mark.parametrize("model", ["transe", "distmult", "complex", "simple"])
def test_ranks_are_those_of_the_head(tmp_path: Path, model: str) -> None:
    benchmark = made("fb15k237_vectors", tmp_path)
    rows = rows_of(benchmark)
    torch.manual_seed(3)
    head = EntityRankingHead(8, 6, ["likes", "knows"], model=model)  # type: ignore[arg-type]
    names = [row.meta["entity"] for row in rows if row.meta["role"] == "entity"]
    vectors = torch.randn(len(names), 6)
    vectors[1] = vectors[2]  # a tie
    index = ExactIndex(vectors, names)
    test = [("a", "likes", "d"), ("d", "knows", "a")]
    known = [("a", "likes", "b"), ("a", "likes", "c"), ("b", "likes", "d"), ("c", "knows", "d"), ("d", "knows", "e")]
    ranks = head.ranks(index, test, known).numpy()
    replies = []
    for row in rows:
        if row.meta["role"] == "entity":
            vector = vectors[index.row(row.meta["entity"])]
        else:
            call = row.reference["calls"][0]
            given = {"query/0/tail": "a", "query/0/head": "d", "query/1/tail": "d", "query/1/head": "a"}[row.key]
            assert call["prompt"].startswith(INVERSE) == (row.meta["side"] == "head")
            vector = head.query(vectors[index.row(given)], call["prompt"]).detach()
        replies.append(embedded(row, vector, compare="l1" if model == "transe" else "dot"))
    values = values_of(benchmark, replies)
    assert values == pytest.approx({"mrr": (1 / ranks).mean(), **{f"hits{k}": np.mean(ranks <= k) for k in (1, 3, 10)}})
    sides = benchmark.score(replies)["fb15k237_vectors/mrr"].parts
    assert sides["side: tail"].value == pytest.approx((1 / ranks[:, 0]).mean())
    mixed = [replace(replies[-1], results=[{**replies[-1].results[0], "compare": "cosine"}])]  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="compared by 'dot' or all by 'l1'"):
        benchmark.score([*replies[:-1], *mixed])


def test_a_silent_query_ranks_last_and_a_silent_entity_lies_below(tmp_path: Path) -> None:
    benchmark = made("fb15k237_vectors", tmp_path)
    gold = [benchmark.gold(row) for row in rows_of(benchmark)]
    silent = [replace(row, results=[None]) if row.key == "query/0/tail" else row for row in gold]
    assert values_of(benchmark, silent)["mrr"] == pytest.approx((1 / 5 + 3) / 4)
    lost = [replace(row, results=[None]) if row.key == "entity/d" else row for row in gold]
    # d is asked for by the tail of the first triple and by the head of the second one.
    assert values_of(benchmark, lost)["mrr"] == pytest.approx((2 + 2 / 5) / 4)
    score = benchmark.score([row for row in gold if row.key != "entity/d"])["fb15k237_vectors/mrr"]
    assert score.value == 1.0 and "2 queries whose right entity was not asked are left out" in score.protocol


def test_a_listed_ranking_counts_and_what_it_leaves_out_ties(tmp_path: Path) -> None:
    benchmark = made("wn18rr", tmp_path)
    row = next(row for row in rows_of(benchmark) if row.key == "0/tail")  # d is right, b and c as well, of five

    def mrr(*items: str) -> float:
        scores = [1.0 - place / 10 for place in range(len(items))]
        return values_of(benchmark, [replace(row, results=[{"type": "ranking", "items": items, "scores": scores}])])[
            "mrr"
        ]

    assert mrr("b", "c", "d", "a") == 1.0
    assert mrr("a", "d") == pytest.approx(1 / 2)
    assert mrr("b", "a") == pytest.approx(1 / 2.5), "d and e are not listed and tie below a"
