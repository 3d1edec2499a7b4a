"""Corpus BLEU and chrF of translations, by sacreBLEU with its signature (https://aclanthology.org/W18-6319)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU, CHRF

from eval.metrics.statistics import Estimate, bootstrap

TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
"""Language -> sacreBLEU's tokeniser, where its default (13a) would count a sentence as one word."""
DEFAULT_TOKENIZER = "13a"


@dataclass(frozen=True)
class TranslationScore:
    """A score of sacreBLEU.

    Args:
        estimate: The score, from 0 to 100, with its error bootstrapped over sentences.
        signature: What it was computed with, in sacreBLEU's notation.
    """

    estimate: Estimate
    signature: str


def tokenizer_of(language: str) -> str:
    """SacreBLEU's tokeniser for a language, such as "zh" or "zh-CN"."""
    return TOKENIZERS.get(language.replace("_", "-").split("-")[0].lower(), DEFAULT_TOKENIZER)


def corpus_bleu(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenizer: str = DEFAULT_TOKENIZER,
    num_resamples: int = 200,
) -> TranslationScore:
    """Case-sensitive, detokenised BLEU; nothing is done to the texts before sacreBLEU sees them.

    Args:
        predictions: One translation per sentence.
        references: References of each sentence, equally many.
        tokenizer: Of sacreBLEU.
        num_resamples: Of the bootstrap.

    Raises:
        ValueError: If there are no sentences, numbers differ, or the tokeniser is unknown or not installed.
    """
    statistics, reduce, signature = bleu_statistics(predictions, references, tokenizer)
    stderr = bootstrap(lambda indices: reduce(statistics[indices]), len(predictions), num_resamples=num_resamples)
    return TranslationScore(Estimate(reduce(statistics), len(predictions), stderr), signature)


def bleu_statistics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str = DEFAULT_TOKENIZER
) -> tuple[NDArray[np.float64], Callable[[NDArray[np.float64]], float], str]:
    """What BLEU sums: one row per sentence, the function from rows to the score, and the signature.

    Args:
        predictions: One translation per sentence.
        references: References of each sentence, equally many.
        tokenizer: Of sacreBLEU.

    Raises:
        ValueError: If there are no sentences, numbers differ, or the tokeniser is unknown or not installed.
    """
    streams = _streams(predictions, references)
    try:
        metric = BLEU(tokenize=tokenizer)
        metric.corpus_score(list(predictions), streams)  # the signature counts the references that it saw
        rows = metric._extract_corpus_statistics(list(predictions), streams)
    except (RuntimeError, ImportError) as error:  # sacreBLEU asks for its optional packages this way
        raise ValueError(f"sacreBLEU tokeniser '{tokenizer}': {' '.join(str(error).split())}") from None

    def reduce(chosen: NDArray[np.float64]) -> float:
        sums = [int(value) for value in chosen.sum(0)]
        return float(metric._compute_score_from_stats(sums).score)

    return np.asarray(rows, dtype=np.float64), reduce, str(metric.get_signature())


def corpus_chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> TranslationScore:
    """ChrF2 of the corpus, which needs no tokeniser.

    Args:
        predictions: One translation per sentence.
        references: References of each sentence, equally many.

    Raises:
        ValueError: If there are no sentences, or numbers differ.
    """
    metric = CHRF()
    score = metric.corpus_score(list(predictions), _streams(predictions, references))
    return TranslationScore(Estimate(float(score.score), len(predictions)), str(metric.get_signature()))


def _streams(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[str]]:
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"expected references of one or more translations, got {len(predictions)} translations and "
            f"references of {len(references)}"
        )
    counts = {len(own) for own in references}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"expected equally many references of every sentence, got {sorted(counts)}")
    return [list(stream) for stream in zip(*references, strict=True)]
