"""Scoring a log, timed in a process of its own; prints its seconds and the most memory that it took."""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # arms are started as scripts

from eval.benchmarks.catalog import CATALOG, CatalogBenchmark, read_catalog
from eval.log import Header, open_log
from eval.prediction import Prediction
from eval.score import score_files

WORDS = "a man dog red two on the street with table white of green standing next cat is in holding bat".split()


def write_log(path: Path, name: str, number: int) -> None:
    """A log of made-up answers with references as the benchmark's reader makes them."""
    benchmark = CatalogBenchmark(name, read_catalog(CATALOG)[name], path.parent)
    chosen = random.Random(0)
    identity = {
        "checkpoint_sha256": "made up",
        "session": {"constrained": False, "decoding": "made up"},
        "data_sha256": {name: "made up"},
        "n_expected": {name: number},
        "protocols": {name: benchmark.protocol},
        "split": benchmark.split,
        "control": None,
        "versions": {},
    }
    path.unlink(missing_ok=True)
    with open_log(path, Header(identity, {"data": str(path.parent)})) as log:
        for start in range(0, number, 5000):
            log.append([_row(name, index, chosen) for index in range(start, min(start + 5000, number))])


def _row(name: str, index: int, chosen: random.Random) -> Prediction:
    if name == "vqav2":
        answers = [chosen.choice(WORDS) for _ in range(2)]
        golds = [answers[chosen.random() < 0.3] for _ in range(10)]
        text = answers[0] if chosen.random() < 0.7 else f"The {chosen.choice(WORDS)}."
        meta = {
            "answers": golds,
            "answer_type": chosen.choice(["yes/no", "number", "other"]),
            "cluster": str(index // 5),
        }
    else:
        captions = [" ".join(chosen.choices(WORDS, k=chosen.randint(8, 14))) for _ in range(5)]
        text, meta = " ".join([*captions[0].split()[:-2], "a", "ball"]), {"captions": captions, "cluster": str(index)}
        golds = captions
    reference = {"text": golds[0], "calls": [], "meta": meta}
    prompt = "user: [image] what is it ?\nAnswer the question using a single word or phrase."
    return Prediction(name, str(index), index=index, prompt=prompt, raw=text, text=text, reference=reference)


def main() -> None:
    """Score once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True)
    given = parser.parse_args()
    started = time.perf_counter()
    scores = score_files([given.log])
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {metric: entry["value"] for metric, entry in scores.items()}
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "scores": found, "versions": {"numpy": version("numpy")}}))


if __name__ == "__main__":
    main()
