"""The rows themselves give the official implementations' numbers: parsers, metrics and sums together."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from eval.benchmarks.catalog import CatalogBenchmark
from eval.prediction import Prediction
from tests.eval.benchmarks.test_catalogue import ROWS
from tests.eval.metrics.golden import golden


def replied(name: str, key: object, reply: str, words: str = "", **meta: Any) -> Prediction:
    return Prediction(name, str(key), text=reply, reference={"text": words, "calls": [], "meta": meta})


def scores_of(name: str, rows: list[Prediction]) -> dict[str, float]:
    scores = CatalogBenchmark(name, ROWS[name], "nowhere").score(iter(rows))
    return {metric.removeprefix(f"{name}/"): score.value for metric, score in scores.items()}


def test_vqa() -> None:
    items = [item for item in golden("vqa")["items"] if item["prediction"]]  # an empty reply is unread
    rows = [
        replied("vqav2", place, item["prediction"], answers=list(Counter(dict(item["golds"])).elements()))
        for place, item in enumerate(items)
    ]
    scores = scores_of("vqav2", rows)
    assert scores["accuracy"] == pytest.approx(np.mean([item["official"] for item in items]), abs=1e-12)
    assert scores["accuracy_evalai"] == pytest.approx(np.mean([item["evalai"] for item in items]), abs=1e-12)


def test_anls() -> None:
    # Replies are taken without white space around them, as every model's wrapper strips them; an empty one is unread.
    items = [item for item in golden("anls")["items"] if item["prediction"] and item["prediction"].strip()]
    items = [item for item in items if item["prediction"] == item["prediction"].strip()]
    rows = [replied("docvqa", i, item["prediction"], answers=item["golds"]) for i, item in enumerate(items)]
    scores = scores_of("docvqa", rows)
    assert len(items) > 8
    assert scores["anls"] == pytest.approx(np.mean([item["rrc"] for item in items]), abs=1e-12)
    assert scores["anls_paper"] == pytest.approx(np.mean([item["paper"] for item in items]), abs=1e-12)


def test_relaxed_accuracy() -> None:
    items = [item for item in golden("relaxed")["items"] if item["prediction"] == item["prediction"].strip()]
    scores = scores_of("chartqa", [replied("chartqa", i, x["prediction"], x["gold"]) for i, x in enumerate(items)])
    assert scores["relaxed_accuracy"] == pytest.approx(np.mean([item["right"] for item in items]))


def test_pope() -> None:
    value = golden("pope")
    rows = [replied("pope", i, x["reply"], x["gold"], category="random") for i, x in enumerate(value["items"])]
    scores = scores_of("pope", rows)
    names = {"accuracy": "Accuracy", "precision": "Precision", "recall": "Recall", "f1": "F1 score"}
    assert {ours: scores[ours] for ours in names} == pytest.approx({o: value["scores"][t] for o, t in names.items()})
    assert scores["yes_ratio"] == pytest.approx(value["scores"]["Yes ratio"])
    assert value["scores"]["Yes ratio"] != np.mean([x["gold"] == "yes" for x in value["items"]]), "not of the labels"


def test_mme() -> None:
    value = golden("mme")
    rows = [
        replied("mme", i, x["reply"], gold=x["gold"], image=f"count/{x['image']}", subtask="count")
        for i, x in enumerate(value["items"])
    ]
    assert scores_of("mme", rows)["perception"] == pytest.approx(value["score"])


def test_mmmu() -> None:
    value = golden("mmmu")
    options = [value["options"][letter] for letter in sorted(value["options"])]
    for i, item in enumerate(value["choices"]):
        row = replied("mmmu", i, item["reply"], str(item["parsed"]), options=options, question_type="multiple-choice")
        assert scores_of("mmmu", [row])["accuracy"] == float(item["parsed"] is not None), item
    for i, item in enumerate(value["open"]):
        golds = item["gold"] if isinstance(item["gold"], list) else [item["gold"]]
        row = replied("mmmu", i, item["reply"], answers=golds, question_type="open")
        assert scores_of("mmmu", [row])["accuracy"] == float(item["right"] and bool(item["reply"].strip())), item


def test_ocrbench() -> None:
    items = golden("ocrbench")["items"]
    rows = [
        replied("ocrbench", i, x["reply"], answers=x["golds"] if isinstance(x["golds"], list) else [x["golds"]],
                dataset_name=x["dataset"])
        for i, x in enumerate(items)
    ]  # fmt: skip
    assert scores_of("ocrbench", rows)["accuracy"] == pytest.approx(np.mean([x["right"] for x in items]))


def test_captions() -> None:
    value = golden("captions")
    rows = [replied("nocaps", i, x["caption"], captions=x["references"]) for i, x in enumerate(value["items"])]
    scores = scores_of("nocaps", rows)
    assert scores["cider"] == pytest.approx(100 * value["scores"]["cider"], abs=1e-8)
    assert scores["bleu4"] == pytest.approx(100 * value["scores"]["bleu"][3], abs=1e-10)
    assert scores["rouge_l"] == pytest.approx(100 * value["scores"]["rouge"], abs=1e-10)


def scored(name: str, key: object, score: float, **meta: Any) -> Prediction:
    row = replied(name, key, "", **meta)
    return Prediction(name, row.key, results=[{"type": "score", "score": score}], reference=row.reference)


def test_retrieval() -> None:
    wanted = golden("retrieval")["scores"]
    rows = []
    for i in range(12):
        for j in range(36):
            score = ((17 * i + 31 * j + (i * j) % 7) % 97) / 97 + 0.4 * (j // 3 == i) + 0.0001 * j
            meta = {"block": 0, "image": str(i), "text": str(j), "match": j // 3 == i}
            rows.append(scored("coco_retrieval", f"{i}/{j}", score, **meta))
    scores = scores_of("coco_retrieval", rows)
    for k in (1, 5, 10):
        assert scores[f"i2t_r{k}"] == pytest.approx(wanted[f"txt_r{k}"])
        assert scores[f"t2i_r{k}"] == pytest.approx(wanted[f"img_r{k}"])


def test_verification() -> None:
    value = golden("verification")
    pairs = zip(value["scores"][0], value["targets"][0], strict=True)
    scores = scores_of("voxceleb", [scored("voxceleb", i, x, match=bool(y)) for i, (x, y) in enumerate(pairs)])
    assert scores["eer"] == pytest.approx(value["eer_interpolated"], abs=1e-9)
    assert scores["min_dcf"] == pytest.approx(value["min_dcf"], abs=1e-12)
