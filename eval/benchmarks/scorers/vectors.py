"""Rankings by vectors that were logged one by one: retrieval, verification, and completion of triples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from eval.benchmarks.benchmark import answers_with
from eval.benchmarks.metric import Answered, Metric, parts_of
from eval.benchmarks.scorers.speech import verification_scores
from eval.metrics.retrieval import best_ranks, hits_at, tie_averaged_ranks
from eval.metrics.statistics import Score
from eval.prediction import Prediction
from eval.tally import Tally
from inference.files import decode_vector, encode_vector

Vector = NDArray[np.float32]
_CHUNK = 256
_DECIMALS = 9
"""Scores are compared after rounding: two equal vectors may differ in the last bit of a matrix product."""
_BELOW_ALL = -2.0  # of a cosine


class VectorMetric(Metric):
    """What metrics of vectors share: one vector says nothing by itself, and a constant one ties with everything."""

    chooses_constant = False

    def right(self, answered: Answered) -> bool:
        """Whether there is a vector."""
        return answered.answer.parsed

    def constant(self, rows: Iterable[Prediction]) -> Callable[[Prediction], Prediction]:
        """The same vector for everything."""
        same = encode_vector(torch.ones(8))
        return lambda row: answers_with(row, {"type": "embedding", "float32": same})


@dataclass
class _Shelf:
    """Vectors by place, some of them missing."""

    keys: list[str] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)
    vectors: list[Vector | None] = field(default_factory=list)

    def add(self, item: Answered, owner: str) -> None:
        self.keys.append(item.row.key)
        self.owners.append(owner)
        self.vectors.append(_vector(item))

    @property
    def missing(self) -> NDArray[np.bool_]:
        return np.array([vector is None for vector in self.vectors], dtype=bool)

    def table(self, width: int, unit: bool) -> NDArray[np.float64]:
        """(n, width) with zeros where there is none."""
        rows = np.zeros((len(self.vectors), width))
        for place, vector in enumerate(self.vectors):
            if vector is not None:
                rows[place] = vector
        if unit:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return rows


class VectorRecall(VectorMetric):
    """Recall@1, 5, 10 between images and their captions in both directions, the gallery being everything; by cosine.

    An image or caption without a vector is found by nobody, and finds nothing.
    """

    names = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """All six; n counts images and captions together."""
        shelves = {"image": _Shelf(), "text": _Shelf()}
        total = 0
        for item in answers:
            total += 1
            shelves[item.row.meta["role"]].add(item, str(item.row.meta["image"]))
        images, texts = shelves["image"], shelves["text"]
        directions = {"i2t": (images, texts), "t2i": (texts, images)}
        ranks = {name: list(_ranks_of(*pair)) for name, pair in directions.items()}
        scores = {}
        for name in self.names:
            direction, k = name.split("_r")
            words = (
                f"recall@{k}, {direction}, among {len(images.owners)} images and {len(texts.owners)} captions, cosine "
                f"rounded to {_DECIMALS} decimals, ties averaged"
            )
            tally = Tally()
            for key, owner, rank in ranks[direction]:
                tally.put(key, owner, [hits_at([rank], int(k))])
            scores[name] = _or_none(tally, words, total, "no image was asked together with a caption of it")
        return scores


class VectorVerification(VectorMetric):
    """Equal error rate and minimum detection cost of trials by the cosine of two clips' vectors.

    A trial with a clip that has no vector counts as the worst one: the lowest score for a match, the highest for none.
    """

    names = ("eer", "min_dcf")

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """Both; n counts clips."""
        vectors: dict[str, Vector | None] = {}
        trials: list[tuple[str, str, str, bool]] = []
        for item in answers:
            meta = item.row.meta
            vectors[meta["clip"]] = _vector(item)
            trials += [(meta["speaker"], meta["clip"], other, bool(match)) for other, match in meta["trials"]]
        units = {name: None if vector is None else _unit(vector) for name, vector in vectors.items()}
        tally, unasked = Tally(2), 0
        for speaker, first, second, match in trials:
            if second not in units:
                unasked += 1
                continue
            one, two = units[first], units[second]
            worst = _BELOW_ALL if match else -_BELOW_ALL
            value = worst if one is None or two is None else round(float(one @ two), _DECIMALS)
            tally.put(f"{first} {second}", speaker, [value, float(match)])
        words = f"{len(tally)} trials by the cosine of two vectors; a clip without one counts as the worst score"
        if unasked:
            words += f"; {unasked} trials with a clip that was not asked are left out"
        if not len(tally):
            reason = "no trial had both clips asked"
            return {name: Score(float("nan"), len(vectors), None, words, na=reason) for name in self.names}
        return {
            name: replace(score, n=len(vectors), corpus=True)
            for name, score in verification_scores(tally, words).items()
        }


class VectorRanks(VectorMetric):
    """Filtered MRR and Hits@1, 3, 10 of the right entity among all, ties averaged, by vectors of queries and entities.

    Vectors are compared as their result says: "dot" product, or minus the "l1" distance. A query without a vector ranks
    the right entity last, an entity without one lies below all others.

    Args:
        parts: Entries of the meta that scores are broken down by.
    """

    names = ("mrr", "hits1", "hits3", "hits10")

    def __init__(self, parts: Sequence[str] = ("side",)) -> None:
        self.parts = tuple(parts)

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """All four; n counts entities and queries together."""
        entities, queries = _Shelf(), _Shelf()
        asked: list[_Asked] = []
        total = 0
        for item in answers:
            total += 1
            meta = item.row.meta
            if meta["role"] == "entity":
                entities.add(item, str(meta["entity"]))
                continue
            result = item.row.first_result("embedding") or {}
            queries.add(item, str(meta["right"]))
            own = _Asked(item.row.key, item.row.cluster, parts_of(item.row, self.parts), meta["known"])
            asked.append(replace(own, compare=str(result.get("compare", "dot"))))
        tallies = {name: Tally() for name in self.names}
        unasked = 0
        for own, rank in zip(asked, _filtered_ranks(queries, entities, asked), strict=True):
            if rank is None:
                unasked += 1
                continue
            for name, value in zip(self.names, (1 / rank, *(float(rank <= k) for k in (1, 3, 10))), strict=True):
                tallies[name].put(own.key, own.cluster, [value], own.parts)
        words = (
            f"rank among {len(entities.owners)} entities, other right ones left out, ties averaged; scores rounded to "
            f"{_DECIMALS} decimals"
        )
        if unasked:
            words += f"; {unasked} queries whose right entity was not asked are left out"
        reason = "no query was asked together with its right entity"
        return {name: _or_none(tally, f"{name}: {words}", total, reason) for name, tally in tallies.items()}


@dataclass(frozen=True)
class _Asked:
    """What is known of a query beside its vector."""

    key: str
    cluster: str
    parts: Sequence[str]
    known: Sequence[str]
    compare: str = "dot"


def _vector(item: Answered) -> Vector | None:
    result = item.row.first_result("embedding") if item.answer.parsed else None
    return None if result is None else decode_vector(str(result["float32"])).numpy()


def _unit(vector: Vector) -> NDArray[np.float64]:
    wide = vector.astype(np.float64)
    unit: NDArray[np.float64] = wide / max(float(np.linalg.norm(wide)), 1e-12)
    return unit


def _width(*shelves: _Shelf) -> int:
    """Of all vectors.

    Raises:
        ValueError: If there are several.
    """
    widths = {len(vector) for shelf in shelves for vector in shelf.vectors if vector is not None}
    if len(widths) > 1:
        raise ValueError(f"vectors: expected all of one width to compare them, got widths {sorted(widths)}")
    return widths.pop() if widths else 1


def _ranks_of(queries: _Shelf, items: _Shelf) -> Iterator[tuple[str, str, float]]:
    """(key, owner, rank of the best right item) of every query that has a right item; infinite without a vector."""
    right: dict[str, list[int]] = defaultdict(list)
    for place, owner in enumerate(items.owners):
        right[owner].append(place)
    width, hidden, silent = _width(queries, items), items.missing, queries.missing
    gallery = items.table(width, unit=True).T
    rows = queries.table(width, unit=True)
    places = [place for place, owner in enumerate(queries.owners) if owner in right]
    for start in range(0, len(places), _CHUNK):
        own = places[start : start + _CHUNK]
        table = np.round(rows[own] @ gallery, _DECIMALS)
        table[:, hidden] = _BELOW_ALL
        wanted = {row: right[queries.owners[place]] for row, place in enumerate(own)}
        for place, rank in zip(own, best_ranks(table, wanted), strict=True):
            lost = silent[place] or hidden[right[queries.owners[place]]].all()
            yield queries.keys[place], queries.owners[place], float("inf") if lost else float(rank)


def _filtered_ranks(queries: _Shelf, entities: _Shelf, asked: Sequence[_Asked]) -> Iterator[float | None]:
    """Rank of the right entity of every query in order; None where that entity was not asked."""
    place = {name: number for number, name in enumerate(entities.owners)}
    width, hidden, silent = _width(queries, entities), entities.missing, queries.missing
    table, rows = entities.table(width, unit=False), queries.table(width, unit=False)
    kinds = {own.compare for own, lost in zip(asked, silent, strict=True) if not lost}
    if len(kinds) > 1 or kinds - {"dot", "l1"}:
        raise ValueError(f"vectors: expected all to be compared by 'dot' or all by 'l1', got {sorted(kinds)}")
    if not entities.owners:
        yield from [None] * len(asked)
        return
    is_distance = "l1" in kinds
    for start in range(0, len(asked), _CHUNK):
        part, own = slice(start, start + _CHUNK), range(start, min(start + _CHUNK, len(asked)))
        scores = -cdist(rows[part], table, "cityblock") if is_distance else rows[part] @ table.T
        largest = np.abs(scores).max(axis=1, keepdims=True, initial=0.0)
        scores = np.round(scores / np.maximum(largest, 1e-12), _DECIMALS)
        scores[:, hidden] = _BELOW_ALL
        known = [[place[name] for name in asked[number].known if name in place] for number in own]
        right = [place.get(queries.owners[number], -1) for number in own]
        ranks = tie_averaged_ranks(scores, [max(0, target) for target in right], known)
        for number, target, rank in zip(own, right, ranks, strict=True):
            last = float(len(entities.owners))
            yield None if target < 0 else last if silent[number] or hidden[target] else float(rank)


def _or_none(tally: Tally, words: str, total: int, reason: str) -> Score:
    if not len(tally):
        return Score(float("nan"), total, None, words, na=reason)
    return replace(tally.mean(words, corpus=True), n=total)
