"""Fixtures of benchmarks that a judge decides."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.eval.benchmarks.fixture import Fixture, clip, picture, repeat_entry, write


def mmvet(folder: Path) -> None:
    rows = {}
    for i, answer in enumerate(["-1 <AND> -5", "a cat <OR> a kitten", "a cat <OR> a kitten", "1968"]):
        write(folder / "images" / f"v1_{i}.png", picture(i))
        rows[f"v1_{i}"] = {
            "imagename": f"v1_{i}.png",
            "question": "What is it?",
            "answer": answer,
            "imagesource": "",
            "capability": ["ocr", "math"] if i else ["rec"],
        }
    write(folder / "mm-vet.json", rows)


def mathvista(folder: Path) -> None:
    kinds = [
        ("multi_choice", "text", ["3/11", "8/11"], "8/11", None),
        ("free_form", "integer", None, "14", None),
        ("free_form", "float", None, "1.2", 1.0),
        ("free_form", "integer", None, "14", None),
    ]
    rows = {}
    for i, (question_type, answer_type, choices, answer, precision) in enumerate(kinds, 1):
        write(folder / "images" / f"{i}.jpg", picture(i))
        rows[str(i)] = {
            "pid": str(i),
            "question": "How many?",
            "query": "Hint: Please answer.\nQuestion: How many?",
            "image": f"images/{i}.jpg",
            "choices": choices,
            "unit": None,
            "precision": precision,
            "answer": answer,
            "question_type": question_type,
            "answer_type": answer_type,
            "metadata": {"task": "figure question answering", "skills": ["arithmetic"], "split": "testmini"},
        }
    write(folder / "testmini.json", rows)


def audiobench(folder: Path) -> None:
    rows = [
        {"context": {"bytes": clip(seed=i), "path": None}, "instruction": "What is said?", "answer": answer}
        for i, answer in enumerate(["a greeting", "the time", "the time", "nothing"])
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "test.parquet")


FIXTURES = {
    "mmvet": Fixture(mmvet, 4, {}, again=repeat_entry("mm-vet.json")),
    "mathvista": Fixture(mathvista, 4, {}, again=repeat_entry("testmini.json")),
    "audiobench_qa": Fixture(audiobench, 4, {}, no_ids="its rows are numbered", no_media=True),
}
