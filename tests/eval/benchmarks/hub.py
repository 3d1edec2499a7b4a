"""Fixtures of hub directories: parquet with images as bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.eval.benchmarks.fixture import Fixture, picture

NUMBERED = "its rows are numbered"
FILE = "{name}-00000-of-00001.parquet"


def parquet(name: str, rows: Sequence[Mapping[str, Any]]) -> Callable[[Path], None]:
    """Writes rows, each with a picture."""

    def make(folder: Path) -> None:
        path = folder / FILE.format(name=name)
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = [{"image": {"bytes": picture(i), "path": None}, **row} for i, row in enumerate(rows)]
        pq.write_table(pa.Table.from_pylist(shown), path)

    return make


def again(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / FILE.format(name=name)
        table = pq.read_table(path)
        pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), path)

    return change


def fixture(name: str, rows: Sequence[Mapping[str, Any]], constant: Mapping[str, float], **options: Any) -> Fixture:
    count = options.pop("count", len(rows))
    return Fixture(parquet(name, rows), count, constant, again=again(name), no_media=True, **options)


GOLDS = ["yes", "yes", "two dogs", "red"]
ASKED = [{"question_id": str(i), "question": "what?", "answers": [gold] * 10} for i, gold in enumerate(GOLDS)]
DOCUMENTS = [{"questionId": str(i), "question": "what?", "answers": [gold]} for i, gold in enumerate(GOLDS)]
FULL = [
    {
        **row,
        "question_id": i,
        "answers": [{"answer": gold, "answer_confidence": "yes", "answer_id": k + 1} for k in range(10)],
        "question_type": "what",
        "answer_type": "other",
    }
    for i, (row, gold) in enumerate(zip(ASKED, GOLDS, strict=True))
]
CHARTS = [
    {"type": "human_test" if i else "augmented_test", "question": "Which?", "answer": gold}
    for i, gold in enumerate(["2008", "2010", "blue", "7"])
]
SIGNS = [
    {"dataset": "IIIT5K", "question": "what?", "question_type": "Regular Text Recognition", "answer": [gold]}
    for gold in ("STOP", "stop", "go")
] + [{"dataset": "HME100k", "question": "what?", "question_type": "Handwritten", "answer": ["a ^ 2"]}]
DIAGRAMS = [
    {"question": "Which?", "options": ["k", "m", "p", "q"], "answer": answer} for answer in ("0", "1", "0", "2")
]
ROTATED = [
    {"index": i, "question": "Which?", "hint": None, "answer": "B" if i else "A", "category": "x", "L2-category": "y"}
    | {"A": "red", "B": "blue", "C": None, "D": None}
    for i in range(4)
]
SEEN = [
    {
        "question_id": str(i),
        "question": "What?",
        "answer": "A" if i else "D",
        "data_type": "image" if i < 4 else "video",
    }
    | {"choice_a": "cat", "choice_b": "dog", "choice_c": "cow", "choice_d": "hen", "question_type_id": 1}
    | {"image": [{"bytes": picture(i), "path": None}]}
    for i in range(5)
]
OBJECTS = [
    {"question_id": str(i), "question": "Is there a dog?", "answer": "no" if i % 2 else "yes", "category": category}
    for category in ("random", "popular", "adversarial")
    for i in range(2)
]

FIXTURES = {
    "vqav2_hub": fixture("validation", FULL, {}),
    "textvqa_hub": fixture("validation", ASKED, {}),
    "vizwiz_hub": fixture("val", ASKED, {}),
    "okvqa_hub": fixture("val2014", ASKED, {}),
    "docvqa_hub": fixture("DocVQA/validation", DOCUMENTS, {}),
    "infovqa_hub": fixture("InfographicVQA/validation", DOCUMENTS, {}),
    "chartqa_hub": Fixture(parquet("test", CHARTS), 4, {}, no_ids=NUMBERED, no_media=True),
    "ocrbench_hub": Fixture(parquet("test", SIGNS), 4, {}, no_ids=NUMBERED, no_media=True),
    "ai2d_hub": Fixture(parquet("test", DIAGRAMS), 4, {"accuracy": 0.5}, no_ids=NUMBERED, no_media=True),
    "mmbench_hub": fixture("dev", ROTATED, {"circular": 0.0, "vanilla": 0.25}, count=8),
    "seedbench_hub": fixture("test", SEEN, {"accuracy": 0.75}, count=4),
    "pope_hub": fixture("test", OBJECTS, {"f1": 2 / 3, "accuracy": 0.5}, gold={"yes_ratio": 0.5}),
}
