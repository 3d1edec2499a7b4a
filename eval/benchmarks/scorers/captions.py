"""Captions: CIDEr-D, BLEU and ROUGE-L. METEOR and SPICE need Java and are not given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from eval.benchmarks.metric import Answered, Metric, parts_of
from eval.metrics.captions.bleu import BleuCounts, bleu, count_bleu
from eval.metrics.captions.cider import NUM_ORDERS, cider_d
from eval.metrics.captions.ptb import PROTOCOL, tokenize
from eval.metrics.captions.rouge import rouge_l
from eval.metrics.statistics import Estimate, Score
from eval.tally import Tally


class CaptionScores(Metric):
    """CIDEr-D times 100, BLEU-4 and ROUGE-L times 100, as they are published.

    Args:
        parts: Entries of the meta that scores are broken down by; parts of CIDEr keep the weights of the whole.
    """

    names = ("cider", "bleu4", "rouge_l")

    def __init__(self, parts: Sequence[str] = ()) -> None:
        self.parts = tuple(parts)

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """The scores; a reply that does not parse is an empty caption."""
        rows, candidates, references = [], [], []
        for item in answers:
            rows.append((item.row.key, item.row.cluster, parts_of(item.row, self.parts)))
            candidates.append(tokenize(str(item.answer.value)) if item.answer.parsed else ())
            references.append([tokenize(text) for text in item.row.meta["captions"]])
        cider, rouge, counts = Tally(), Tally(), Tally(2 * NUM_ORDERS + 2)
        table = count_bleu(candidates, references)
        columns = np.column_stack([table.correct, table.guessed, table.length, table.reference_length])
        scores = zip(cider_d(candidates, references), rouge_l(candidates, references), columns, strict=True)
        for (key, cluster, parts), (own_cider, own_rouge, own_counts) in zip(rows, scores, strict=True):
            cider.put(key, cluster, [float(own_cider)], parts)
            rouge.put(key, cluster, [float(own_rouge)], parts)
            counts.put(key, cluster, own_counts.tolist(), parts)
        bleu4 = counts.statistic(
            lambda sums: 100 * float(bleu(_counts(sums))[3]), f"BLEU-4 x 100; {PROTOCOL}", corpus=True
        )
        whole = 100 * bleu(_counts(counts.columns))
        for order in range(NUM_ORDERS - 1):
            bleu4.parts[f"BLEU-{order + 1}"] = Estimate(float(whole[order]), bleu4.n)
        words = f"CIDEr-D x 100, weights from the references of the {len(rows)} images asked; {PROTOCOL}"
        return {
            "cider": cider.mean(words, scale=100, corpus=True),
            "bleu4": bleu4,
            "rouge_l": replace(rouge.mean(f"ROUGE-L x 100, beta 1.2; {PROTOCOL}", scale=100)),
        }

    def right(self, answered: Answered) -> bool:
        """Where ROUGE-L reaches one half."""
        if not answered.answer.parsed:
            return False
        references = [tokenize(text) for text in answered.row.meta["captions"]]
        return bool(rouge_l([tokenize(str(answered.answer.value))], [references])[0] >= 0.5)


def _counts(rows: NDArray[np.float64]) -> BleuCounts:
    return BleuCounts(rows[:, :NUM_ORDERS], rows[:, NUM_ORDERS : 2 * NUM_ORDERS], rows[:, -2], rows[:, -1])
