"""How long scoring takes: 200,000 answers under VQA accuracy, 5,000 captions under CIDEr-D, BLEU and ROUGE-L.

``python -m benchmarks.scoring`` prints the seconds; :func:`scoring_seconds` gives them to other benchmarks.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator

from eval.benchmarks.answer import Answer
from eval.benchmarks.metric import Answered, Metric
from eval.benchmarks.scorers.answers import VqaAccuracy
from eval.benchmarks.scorers.captions import CaptionScores
from eval.prediction import Prediction

NUM_ANSWERS = 200_000
NUM_CAPTIONS = 5_000
REFERENCES = 5
_VOCABULARY = 8_000
_ANSWERS = 50_000


def scoring_seconds(num_answers: int = NUM_ANSWERS, num_captions: int = NUM_CAPTIONS) -> dict[str, float]:
    """Seconds of ``score/vqa_seconds`` and ``score/cider_seconds``: the whole metric, with its standard errors.

    Args:
        num_answers: Predictions with ten golds each.
        num_captions: Images with a caption and five references each.
    """
    return {
        "score/vqa_seconds": _seconds(VqaAccuracy(["official"]), vqa_answers(num_answers)),
        "score/cider_seconds": _seconds(CaptionScores(), captions(num_captions)),
    }


def vqa_answers(count: int, seed: int = 0) -> Iterator[Answered]:
    """Answers of one to three words, some far more frequent than others as in VQAv2, one after another."""
    rng = random.Random(seed)
    pool = [" ".join(_words(rng, 1, 3)) + rng.choice(["", ".", "?", "'s"]) for _ in range(_ANSWERS)]
    for number in range(count):
        said = [pool[min(int(rng.paretovariate(0.6)) - 1, _ANSWERS - 1)] for _ in range(3)]
        meta = {"answers": [rng.choice(said) for _ in range(10)], "cluster": str(number // 6)}
        row = Prediction("vqa", str(number), text=rng.choice(said), reference={"text": "", "calls": [], "meta": meta})
        yield Answered(row, Answer(row.text))


def captions(count: int, seed: int = 0) -> Iterator[Answered]:
    """Captions of eight to fourteen words with references of the same kind."""
    rng = random.Random(seed)
    for number in range(count):
        texts = [" ".join(_words(rng, 8, 14)) + "." for _ in range(1 + REFERENCES)]
        meta = {"captions": texts[1:], "cluster": str(number)}
        row = Prediction("captions", str(number), text=texts[0], reference={"text": "", "calls": [], "meta": meta})
        yield Answered(row, Answer(row.text))


def _words(rng: random.Random, least: int, most: int) -> list[str]:
    numbers = (min(int(rng.paretovariate(0.9)) - 1, _VOCABULARY - 1) for _ in range(rng.randint(least, most)))
    return [f"w{number}" for number in numbers]


def _seconds(metric: Metric, answers: Iterator[Answered]) -> float:
    items = list(answers)
    start = time.perf_counter()
    metric.score(items)
    return time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps(scoring_seconds(), indent=1))
