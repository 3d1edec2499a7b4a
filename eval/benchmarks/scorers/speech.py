"""Transcripts, translations and speaker verification."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from eval.benchmarks.benchmark import says
from eval.benchmarks.metric import Answered, Metric, parts_of
from eval.benchmarks.scorers.matches import WORST_WITHOUT, tally_matches
from eval.metrics.statistics import Score
from eval.metrics.text import word_errors
from eval.metrics.transcripts import transcript_normaliser
from eval.metrics.translation import bleu_statistics, tokenizer_of
from eval.metrics.verification import equal_error_rate, minimum_detection_cost
from eval.prediction import Prediction
from eval.tally import Tally


class WordErrorRate(Metric):
    """Corpus word error rate under one named normaliser.

    Args:
        normaliser: One of :data:`eval.metrics.transcripts.NORMALISERS`; applied once to both sides.
        spelling: ``normalizer.json`` of a Whisper checkpoint, for "whisper-english".
        parts: Entries of the meta that scores are broken down by.
    """

    names = ("wer",)
    chooses_constant = False

    def __init__(
        self, normaliser: str = "whisper-english", spelling: str | None = None, parts: Sequence[str] = ()
    ) -> None:
        self.name, self.normalise = transcript_normaliser(normaliser, spelling)
        self.parts = tuple(parts)

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """Edits over words; a reply that does not parse is empty, a reference without words is left out and counted."""
        tally, silent, total = Tally(2), 0, 0
        for item in answers:
            total += 1
            errors = self._errors(item)
            if errors is None:
                silent += 1
            else:
                tally.add(item.row, *map(float, errors), parts=parts_of(item.row, self.parts))
        left = f"; {silent} references without words after normalisation are left out" if silent else ""
        words = f"corpus word error rate, edits over reference words (jiwer), normaliser {self.name}{left}"
        if not len(tally):
            return {"wer": Score(float("nan"), total, None, words, higher_is_better=False, na="no reference has words")}
        return {"wer": replace(tally.ratio(words, higher_is_better=False), n=total)}

    def right(self, answered: Answered) -> bool:
        """Without an error."""
        return (self._errors(answered) or (1, 1))[0] == 0

    def constant(self, rows: Iterable[Prediction]) -> Callable[[Prediction], Prediction]:
        """Silence."""
        return lambda row: says(row, "")

    def _errors(self, item: Answered) -> tuple[int, int] | None:
        reference = self.normalise(item.row.answer)
        if not reference.strip():
            return None
        return word_errors(self.normalise(str(item.answer.value)) if item.answer.parsed else "", reference)


class TranslationBleu(Metric):
    """Case-sensitive, detokenised sacreBLEU; nothing is done to the texts before.

    Args:
        language: Of the translations, which chooses the tokeniser.
        parts: Entries of the meta that scores are broken down by.
    """

    names = ("bleu",)

    def __init__(self, language: str, parts: Sequence[str] = ()) -> None:
        self.tokenizer, self.parts = tokenizer_of(language), tuple(parts)

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """BLEU with its signature; a reply that does not parse is empty."""
        tally: Tally | None = None
        rows: list[tuple[str, str, list[str]]] = []
        texts: list[str] = []
        references: list[str] = []
        reduce, signature = None, ""

        def flush() -> None:
            nonlocal tally, reduce, signature
            if not texts:
                return
            columns, reduce, signature = bleu_statistics(texts, [[text] for text in references], self.tokenizer)
            tally = tally or Tally(columns.shape[1])
            for (key, cluster, parts), own in zip(rows, columns, strict=True):
                tally.put(key, cluster, own.tolist(), parts)
            rows.clear()
            texts.clear()
            references.clear()

        for item in answers:
            rows.append((item.row.key, item.row.cluster, parts_of(item.row, self.parts)))
            texts.append(str(item.answer.value) if item.answer.parsed else "")
            references.append(item.row.answer)
            if len(rows) == 1000:
                flush()
        flush()
        if tally is None or reduce is None:
            raise ValueError("expected at least one answer to score, got none")
        return {"bleu": tally.statistic(reduce, f"sacreBLEU {signature}", corpus=True)}

    def right(self, answered: Answered) -> bool:
        """Where it says what the reference says."""
        return answered.answer.parsed and str(answered.answer.value).split() == answered.row.answer.split()


class VerificationErrors(Metric):
    """Equal error rate and minimum detection cost of scores that two are the same (``meta.match``).

    A reply without a score counts as the worst one: the lowest for a match, the highest for none.
    """

    names = ("eer", "min_dcf")
    chooses_constant = False

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """Both."""
        return verification_scores(tally_matches(answers), WORST_WITHOUT)

    def right(self, answered: Answered) -> bool:
        """Whether the score lies on the right side of one half."""
        return answered.answer.parsed and (answered.answer.value >= 0.5) == answered.row.meta["match"]

    def constant(self, rows: Iterable[Prediction]) -> Callable[[Prediction], Prediction]:
        """Always yes."""
        return lambda row: says(row, "yes")


def verification_scores(tally: Tally, words: str) -> dict[str, Score]:
    """``eer`` and ``min_dcf``.

    Args:
        tally: Score, and 1 for a match or 0, of every trial.
        words: What else the protocol says.
    """
    return {
        "eer": tally.statistic(
            _verification(equal_error_rate), f"equal error rate, interpolated; {words}", higher_is_better=False
        ),
        "min_dcf": tally.statistic(
            _verification(minimum_detection_cost),
            f"minimum of the normalised detection cost, p = 0.05, equal costs; {words}",
            higher_is_better=False,
        ),
    }


def _verification(function: Callable[..., float]) -> Callable[[NDArray[np.float64]], float]:
    def reduce(rows: NDArray[np.float64]) -> float:
        targets = rows[:, 1] > 0
        if targets.all() or not targets.any():
            return float("nan")
        return function(rows[:, 0], targets)

    return reduce
