"""Ranks of the right candidate among others: filtered, with ties averaged; MRR, Hits@k and retrieval recall."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def tie_averaged_ranks(
    scores: ArrayLike, right: Sequence[int], filtered: Sequence[Collection[int]] | None = None
) -> NDArray[np.float64]:
    """Rank of the right candidate of every query: 1 + those above it + half of those equal to it.

    Equal scores share their mean rank, so a model that gives every candidate the same score gets the rank of chance,
    not the first place (https://arxiv.org/abs/1911.03903).

    Args:
        scores: (queries, candidates), higher is better.
        right: The right candidate of each query.
        filtered: Candidates that are right as well, such as other known tails of (head, relation): they do not count
            against the right one (the "filtered setting", https://papers.nips.cc/paper/5071).

    Raises:
        ValueError: If shapes do not fit, a score is NaN, or a candidate does not exist.
    """
    table = np.array(scores, dtype=np.float64)
    if table.ndim != 2 or len(table) != len(right):
        raise ValueError(f"expected scores (queries, candidates) of {len(right)} queries, got shape {table.shape}")
    if np.isnan(table).any():
        raise ValueError("expected scores, got NaN")
    places = np.asarray(right, dtype=np.int64)
    outside = [int(place) for place in places if not 0 <= place < table.shape[1]]
    if outside:
        raise ValueError(f"expected right candidates from 0 to {table.shape[1] - 1}, got {outside[:3]}")
    rows = np.arange(len(table))
    own = table[rows, places]
    for row, others in enumerate(filtered or ()):
        known = [other for other in others if other != places[row]]
        table[row, known] = -np.inf
    counted = np.ones_like(table, dtype=bool)
    if filtered is not None:
        counted = table != -np.inf
    counted[rows, places] = False
    above = (counted & (table > own[:, None])).sum(1)
    equal = (counted & (table == own[:, None])).sum(1)
    ranks: NDArray[np.float64] = 1 + above + equal / 2
    return ranks


def rank_among(scores: Mapping[str, float], right: str, known: Collection[str], num_candidates: int) -> float:
    """Filtered, tie-averaged rank of the right candidate where only some candidates have a score.

    Those without one lie below all that have one, and tie with one another.

    Args:
        scores: Candidate -> score.
        right: The right one.
        known: Others that are right as well; they do not count.
        num_candidates: How many candidates there are in all.
    """
    others = {name: value for name, value in scores.items() if name != right and name not in set(known)}
    if right in scores:
        own = scores[right]
        above = sum(value > own for value in others.values())
        equal = sum(value == own for value in others.values())
        return 1 + above + equal / 2
    unlisted = max(0, num_candidates - len(others) - len(set(known) - {right}) - 1)
    return 1 + len(others) + unlisted / 2


def mean_reciprocal_rank(ranks: ArrayLike) -> float:
    """Mean of 1 / rank."""
    return float((1 / np.asarray(ranks, dtype=np.float64)).mean())


def hits_at(ranks: ArrayLike, k: int) -> float:
    """Share of ranks that are at most k; a tie that straddles k counts as a miss if its mean rank lies beyond."""
    return float((np.asarray(ranks, dtype=np.float64) <= k).mean())


def link_hits_at(positive: ArrayLike, negative: ArrayLike, k: int) -> float:
    """Share of positive links scored above the k-th best negative one, as OGB reports Hits@k for links.

    Args:
        positive: Scores of links that are there.
        negative: Scores of links that are not, shared by all.
        k: Which negative is the bar; with fewer than k of them every positive counts.
    """
    bars = np.sort(np.asarray(negative, dtype=np.float64))[::-1]
    if len(bars) < k:
        return 1.0
    return float((np.asarray(positive, dtype=np.float64) > bars[k - 1]).mean())


def retrieval_recall(
    similarity: ArrayLike, gallery: Mapping[int, Collection[int]], ks: Sequence[int] = (1, 5, 10)
) -> dict[int, float]:
    """Recall@k of cross-modal retrieval: share of queries with a right item among their k best.

    Args:
        similarity: (queries, items), higher is better.
        gallery: Query -> its right items; of several the best-ranked counts, without the others above it.
        ks: The k's.

    Raises:
        ValueError: If a query has no right item.
    """
    table = np.asarray(similarity, dtype=np.float64)
    ranks = best_ranks(table, gallery)
    return {k: hits_at(ranks, k) for k in ks}


def best_ranks(similarity: ArrayLike, gallery: Mapping[int, Collection[int]]) -> NDArray[np.float64]:
    """Tie-averaged rank of the best right item of every query among the wrong ones.

    Raises:
        ValueError: If a query has no right item.
    """
    table = np.asarray(similarity, dtype=np.float64)
    missing = [query for query in range(len(table)) if not gallery.get(query)]
    if missing:
        raise ValueError(f"retrieval: expected right items of every query, got none of query {missing[0]}")
    best = []
    for query, row in enumerate(table):
        items = list(gallery[query])
        best.append(items[int(row[items].argmax())])
    return tie_averaged_ranks(table, best, [gallery[query] for query in range(len(table))])


def ndcg_at(similarity: ArrayLike, relevance: ArrayLike, k: int = 10) -> NDArray[np.float64]:
    """Normalised discounted cumulative gain of every query, cut at k (https://doi.org/10.1145/582415.582418).

    ``DCG = Σ_r gain_r / log2(r + 1)`` over the k best places r, the gain being the relevance itself, as BEIR and TREC
    report it; equal scores share the mean gain of their places, so that their order does not matter.

    Args:
        similarity: (queries, items), higher is better.
        relevance: (queries, items), 0 for an irrelevant item.
        k: Places that count.

    Returns:
        (queries,) from 0 to 1.

    Raises:
        ValueError: If shapes differ, k is less than 1, or a query has no relevant item.
    """
    scores, gains = np.asarray(similarity, dtype=np.float64), np.asarray(relevance, dtype=np.float64)
    if scores.ndim != 2 or scores.shape != gains.shape or k < 1:
        raise ValueError(f"nDCG@{k}: expected scores and relevance (queries, items), got {scores.shape}, {gains.shape}")
    barren = np.flatnonzero((gains <= 0).all(axis=1))
    if len(barren):
        raise ValueError(f"nDCG@{k}: expected a relevant item of every query, got none of query {barren[0]}")
    discounts = np.zeros(scores.shape[1])
    discounts[:k] = 1 / np.log2(np.arange(2, min(k, scores.shape[1]) + 2))
    ideal = -np.sort(-gains, axis=1) @ discounts
    found = np.empty(len(scores))
    for row in range(len(scores)):
        order = np.argsort(-scores[row], kind="stable")
        _, first, counts = np.unique(-scores[row][order], return_index=True, return_counts=True)
        means = np.add.reduceat(gains[row][order], first) / counts
        found[row] = means @ np.add.reduceat(discounts, first)
    return found / ideal
