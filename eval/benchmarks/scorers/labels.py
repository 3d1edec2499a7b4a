"""Classes, links and rankings: of nodes, emotions, triples, images and captions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.benchmarks.benchmark import answers_with, says
from eval.benchmarks.metric import Answered, Metric, parts_of
from eval.benchmarks.scorers.matches import WORST_WITHOUT, tally_matches
from eval.metrics.ranking import average_precision, roc_auc
from eval.metrics.retrieval import best_ranks, hits_at, link_hits_at, rank_among
from eval.metrics.statistics import Score
from eval.prediction import Prediction
from eval.tally import Reduce, Tally


class LabelScores(Metric):
    """Accuracy of the only label mentioned, of replies that are nothing else, and averages over classes.

    ``accuracy`` is strict: the whole reply is the label, or a head gave it. ``mentioned`` takes a reply in which the
    label stands alone among the labels. ``balanced_accuracy`` ("unweighted accuracy" in emotion recognition) and
    ``macro_f1`` are of the mentioned one.

    Args:
        parts: Entries of the meta that scores are broken down by.
    """

    names = ("accuracy", "mentioned", "balanced_accuracy", "macro_f1")

    def __init__(self, parts: Sequence[str] = ()) -> None:
        self.parts = tuple(parts)

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """All four."""
        tally = Tally(3)
        codes: dict[str, int] = {}
        for item in answers:
            gold, parsed = item.row.answer, item.answer.parsed
            label = str(item.answer.value["label"]) if parsed else ""
            mine = float(codes.setdefault(label, len(codes))) if parsed else -1.0
            exact = parsed and bool(item.answer.value["exact"]) and label == gold
            columns = (float(exact), mine, float(codes.setdefault(gold, len(codes))))
            tally.add(item.row, *columns, parts=parts_of(item.row, self.parts))
        words = "a reply that names no label, or several, is wrong"
        reductions: dict[str, tuple[Reduce, str]] = {
            "accuracy": (
                lambda rows: float(rows[:, 0].mean()),
                f"the reply is the gold label and nothing else; {words}",
            ),
            "mentioned": (lambda rows: float((rows[:, 1] == rows[:, 2]).mean()), f"the one label mentioned; {words}"),
            "balanced_accuracy": (_balanced_accuracy, f"mean recall over the gold classes; {words}"),
            "macro_f1": (_macro_f1, f"mean F1 over the gold classes; {words}"),
        }
        return {name: tally.statistic(reduce, text) for name, (reduce, text) in reductions.items()}

    def right(self, answered: Answered) -> bool:
        """Whether the gold label is the one mentioned."""
        return answered.answer.parsed and answered.answer.value["label"] == answered.row.answer


class MatchScores(Metric):
    """Area under the ROC curve, average precision, accuracy at one half, and Hits@K of scores for ``meta.match``.

    Hits@K is the share of matches that score above the K-th best of the others, as OGB has it for links. A reply
    without a score counts as the worst one.

    Args:
        hits: K.
    """

    chooses_constant = False

    def __init__(self, hits: int = 100) -> None:
        self.hits = hits
        self.names = ("auc", "ap", "accuracy", f"hits{hits}")

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """All four; Hits@K where there are so many others."""
        tally, words = tally_matches(answers), WORST_WITHOUT
        reductions: dict[str, tuple[Reduce, str]] = {
            "auc": (_of_matches(roc_auc), f"area under the ROC curve, ties half; {words}"),
            "ap": (_of_matches(average_precision), f"average precision; {words}"),
            "accuracy": (
                lambda rows: float(((rows[:, 0] >= 0.5) == (rows[:, 1] > 0)).mean()),
                f"accuracy at a score of one half; {words}",
            ),
        }
        scores = {name: tally.statistic(reduce, text) for name, (reduce, text) in reductions.items()}
        others = int((tally.columns[:, 1] == 0).sum())
        text = f"share of matches above the {self.hits}. best of {others} others; {words}"
        if others < self.hits:
            reason = f"needs {self.hits} pairs that do not match, got {others}"
            scores[self.names[3]] = Score(float("nan"), len(tally), None, text, na=reason)
        else:
            scores[self.names[3]] = tally.statistic(self._hits, text)
        return scores

    def _hits(self, rows: NDArray[np.float64]) -> float:
        matches = rows[:, 1] > 0
        return link_hits_at(rows[matches, 0], rows[~matches, 0], self.hits) if matches.any() else float("nan")

    def right(self, answered: Answered) -> bool:
        """Whether the score lies on the right side of one half."""
        return answered.answer.parsed and (answered.answer.value >= 0.5) == answered.row.meta["match"]

    def constant(self, rows: Iterable[Prediction]) -> Callable[[Prediction], Prediction]:
        """One score for all."""
        return lambda row: answers_with(row, {"type": "score", "score": 0.5})


class RankScores(Metric):
    """Filtered MRR and Hits@1, 3, 10 of the right entity among all, ties averaged.

    Args:
        parts: Entries of the meta that scores are broken down by.
    """

    names = ("mrr", "hits1", "hits3", "hits10")

    def __init__(self, parts: Sequence[str] = ("side",)) -> None:
        self.parts = tuple(parts)

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """All four."""
        tallies = {name: Tally() for name in self.names}
        for item in answers:
            rank = self._rank(item)
            values = (1 / rank, *(float(rank <= k) for k in (1, 3, 10)))
            for tally, value in zip(tallies.values(), values, strict=True):
                tally.add(item.row, value, parts=parts_of(item.row, self.parts))
        words = (
            "rank among all entities, other right ones left out, ties averaged; candidates without a score lie below "
            "the others and tie"
        )
        return {name: tally.mean(f"{name}: {words}") for name, tally in tallies.items()}

    def right(self, answered: Answered) -> bool:
        """Where it comes first."""
        return self._rank(answered) <= 1

    def _rank(self, item: Answered) -> float:
        meta = item.row.meta
        scores = item.answer.value if item.answer.parsed else {}
        return rank_among(scores, item.row.answer, meta["known"], meta["num_candidates"])


class RetrievalRecall(Metric):
    """Recall@1, 5, 10 from scores of pairs, in both directions, within the blocks of the reader; ties averaged."""

    names = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
    chooses_constant = False

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """All six; a pair without a score has the lowest. n counts pairs."""
        blocks: dict[int, _Block] = {}
        total = 0
        for item in answers:
            total += 1
            meta = item.row.meta
            score = float(item.answer.value) if item.answer.parsed else -1.0
            blocks.setdefault(meta["block"], _Block()).add(meta["image"], meta["text"], score, bool(meta["match"]))
        directions = {
            "i2t": [rank for block in blocks.values() for rank in block.ranks()],
            "t2i": [rank for block in blocks.values() for rank in block.ranks(turned=True)],
        }
        scores = {}
        for name in self.names:
            direction, k = name.split("_r")
            ranks = directions[direction]
            tally = Tally()
            for number, (cluster, rank) in enumerate(ranks):
                tally.put(str(number), cluster, [hits_at([rank], int(k))])
            words = f"recall@{k}, {direction}, within {len(blocks)} blocks of images and their captions, ties averaged"
            mean = tally.mean(words)
            scores[name] = Score(mean.value, total, mean.stderr, words, corpus=True)
        return scores

    def right(self, answered: Answered) -> bool:
        """Whether the pair's score lies on the right side of one half."""
        return answered.answer.parsed and (answered.answer.value >= 0.5) == answered.row.meta["match"]

    def constant(self, rows: Iterable[Prediction]) -> Callable[[Prediction], Prediction]:
        """Always yes: every candidate ties."""
        return lambda row: says(row, "yes")


class _Block:
    """The scores of some images with their captions."""

    def __init__(self) -> None:
        self.images: dict[str, int] = {}
        self.texts: dict[str, int] = {}
        self.pairs: list[tuple[int, int, float, bool]] = []

    def add(self, image: str, text: str, score: float, match: bool) -> None:
        """Count a pair."""
        place = self.images.setdefault(image, len(self.images)), self.texts.setdefault(text, len(self.texts))
        self.pairs.append((*place, score, match))

    def ranks(self, turned: bool = False) -> list[tuple[str, float]]:
        """(image, rank) of every image's best caption, or of every caption's image, where there is one."""
        table = np.full((len(self.images), len(self.texts)), -1.0)
        gallery: dict[int, list[int]] = {}
        for image, text, score, match in self.pairs:
            table[image, text] = score
            if match:
                gallery.setdefault(text if turned else image, []).append(image if turned else text)
        queries = sorted(gallery)
        scores = (table.T if turned else table)[queries]
        ranks = best_ranks(scores, {place: gallery[query] for place, query in enumerate(queries)})
        names = list(self.texts if turned else self.images)
        return [(names[query].split("/")[0], float(rank)) for query, rank in zip(queries, ranks, strict=True)]


def _of_matches(function: Callable[..., float]) -> Reduce:
    return lambda rows: function(rows[:, 0], rows[:, 1] > 0)


def _balanced_accuracy(rows: NDArray[np.float64]) -> float:
    recalls = [float((rows[rows[:, 2] == code, 1] == code).mean()) for code in np.unique(rows[:, 2])]
    return float(np.mean(recalls))


def _macro_f1(rows: NDArray[np.float64]) -> float:
    scores = []
    for code in np.unique(rows[:, 2]):
        mine, theirs = rows[:, 1] == code, rows[:, 2] == code
        scores.append(2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()))
    return float(np.mean(scores))
