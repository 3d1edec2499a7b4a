"""Fixtures of multiple choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.eval.benchmarks.fixture import Fixture, base64_picture, clip, picture, repeat, write, write_tsv


def scienceqa(folder: Path) -> None:
    problems = {}
    for i in range(5):
        shows = i < 3
        if shows:
            write(folder / "test" / str(i) / "image.png", picture(i))
        problems[str(i)] = {
            "question": f"Which is {i}?",
            "choices": ["left", "right", "up"][: 2 + i % 2],
            "answer": 0 if i < 4 else 1,
            "hint": "Look." if i % 2 else "",
            "image": "image.png" if shows else None,
            "task": "closed choice",
            "grade": "grade2",
            "subject": "natural science",
            "lecture": "",
            "solution": "",
            "split": "test",
        }
    problems["9"] = {**problems["0"], "split": "train"}
    problems["8"] = {**problems["0"], "split": "val"}
    write(folder / "problems.json", problems)
    write(folder / "pid_splits.json", {"train": ["9"], "val": ["8"], "test": ["0", "1", "2", "3", "4"]})


def scienceqa_again(folder: Path) -> None:
    write(folder / "pid_splits.json", {"val": ["8"], "test": ["0", "1", "0"]})


def mmbench(folder: Path) -> None:
    rows = []
    for i in range(3):
        options = {"A": "red", "B": "blue", "C": "green" if i else "", "D": ""}
        rows.append(
            {
                "index": i,
                "question": "Which colour?",
                "hint": "Think." if i == 1 else "",
                **options,
                "answer": "B" if i < 2 else "A",
                "category": "color",
                "l2-category": "perception" if i < 2 else "reasoning",
                "image": base64_picture(0) if i < 2 else "0",
                "split": "dev",
            }
        )
    write_tsv(folder / "mmbench_dev_en.tsv", rows)


def seedbench(folder: Path) -> None:
    questions: list[dict[str, Any]] = []
    for i in range(7):
        is_image = i < 4
        name = f"{i}" if is_image else f"clip{i}.mp4"
        write(folder / ("SEED-Bench-image" if is_image else "SEED-Bench-video") / name, picture(i))
        questions.append(
            {
                "answer": "A" if i % 2 else "C",
                "choice_a": "The dog",
                "choice_b": "a cat",
                "choice_c": "two birds",
                "choice_d": "nothing",
                "data_id": name,
                "data_type": "image" if is_image else "video",
                "question": "What is there?",
                "question_id": str(100 + i),
                "question_type_id": 1 + i % 2,
            }
        )
    write(folder / "SEED-Bench.json", {"questions": questions, "question_type": {"Scene Understanding": 1}})


def mmmu(folder: Path) -> None:
    image = {"bytes": picture(0), "path": None}
    rows = [
        ("validation_Math_1", "What is <image 1>?", "['red', 'blue']", "multiple-choice", "B", image),
        ("validation_Math_2", "Which one?", "['<image 1>', 'none']", "multiple-choice", "B", image),
        ("validation_Math_3", "How many in <image 1>?", "[]", "open", "['42', 'forty-two']", image),
        ("validation_Art_1", "Who painted <image 1>?", "['A', 'B', 'C']", "multiple-choice", "C", image),
    ]
    for subject in ("Math", "Art"):
        own = [
            {
                "id": name,
                "question": question,
                "options": options,
                "explanation": "",
                "image_1": shown,
                **{f"image_{n}": None for n in range(2, 8)},
                "img_type": "['Diagrams']",
                "answer": answer,
                "topic_difficulty": "Easy",
                "question_type": kind,
                "subfield": "Algebra",
            }
            for name, question, options, kind, answer, shown in rows
            if f"_{subject}_" in name
        ]
        (folder / subject).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(own), folder / subject / "validation-00000-of-00001.parquet")


def mmmu_again(folder: Path) -> None:
    path = folder / "Art" / "validation-00000-of-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table]), path)


def ai2d(file: str) -> Any:
    def make(folder: Path) -> None:
        rows = [
            {
                "index": i,
                "image": base64_picture(i),
                "question": "Which label?",
                "A": "k",
                "B": "m",
                "C": "p",
                "D": "q",
                "answer": "ABCA"[i],
                "category": "x",
            }
            for i in range(4)
        ]
        write_tsv(folder / file, rows)

    return make


def physbench(folder: Path) -> None:
    rows = []
    for i in range(5):
        video = i % 2 == 1
        names = [f"clip{i}.mp4"] if video else [f"{i}_0.jpg", f"{i}_1.jpg"]
        for name in names:
            write(folder / ("video" if video else "image") / name, clip() if video else picture(i))
        slots = "<video>\n" if video else "<image> and <image>\n"
        rows.append(
            {
                "idx": i,
                "question": f"{slots}Which is heavier?\nA. left\nB. right\nC. both\nD. none",
                "file_name": names,
                "mode": "image&video" if video else "general",
                "split": "val" if i < 4 else "test",
                "task_type": "property",
                "sub_type": "mass",
                "ability_type": "comparison",
                "answer": "B" if i < 3 else "D",
            }
        )
    write(folder / "test.json", rows)


def physbench_test(folder: Path) -> None:
    physbench(folder)
    rows = json.loads((folder / "test.json").read_text())
    hidden = [{**row, "split": "test" if row["split"] == "val" else "val"} for row in rows]
    for row in hidden:
        del row["answer"]
    write(folder / "test.json", hidden)


def mmbench_test(folder: Path) -> None:
    """A server's file: rotations as rows of their own, no answers."""
    rows = []
    for i in range(2):
        for turn in range(2):
            options = {"A": "=1+1", "B": "https://blue.example"} if turn else {"A": "https://blue.example", "B": "=1+1"}
            rows.append(
                {
                    "index": i + turn * 1_000_000,
                    "question": "Which colour?",
                    "hint": "",
                    **options,
                    "C": "",
                    "D": "",
                    "category": "color",
                    "l2-category": "perception",
                    "image": base64_picture(i) if not turn else str(i),
                    "split": "test",
                }
            )
    write_tsv(folder / "mmbench_test_en_20231003.tsv", rows)


def mmmu_test(folder: Path) -> None:
    mmmu(folder)
    for path in list(folder.glob("*/validation-*.parquet")):
        rows = pq.read_table(path).to_pylist()
        renamed = [{**row, "id": row["id"].replace("validation", "test"), "answer": "?"} for row in rows]
        path.unlink()
        pq.write_table(pa.Table.from_pylist(renamed), path.with_name("test-00000-of-00001.parquet"))


def mmmu_test_again(folder: Path) -> None:
    path = folder / "Art" / "test-00000-of-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table]), path)


DEV = {f"{name}/validation-00000-of-00001.parquet": f"{name}/dev-00000-of-00001.parquet" for name in ("Art", "Math")}

FIXTURES = {
    "scienceqa": Fixture(scienceqa, 5, {"accuracy": 0.8}, again=scienceqa_again),
    # Rotations 2 + 3 + 3; always one letter is never right in all of a question's rotations.
    "mmbench": Fixture(
        mmbench, 8, {"circular": 0.0, "vanilla": 1 / 3}, again=repeat("mmbench_dev_en.tsv"), no_media=True
    ),
    "mmbench_vanilla": Fixture(mmbench, 3, {"accuracy": 1 / 3}, again=repeat("mmbench_dev_en.tsv"), no_media=True),
    "mmbench_test": Fixture(mmbench_test, 4, {}, again=repeat("mmbench_test_en_20231003.tsv"), no_media=True),
    "seedbench": Fixture(seedbench, 4, {"accuracy": 0.5}, again=repeat("SEED-Bench.json", "questions")),
    "seedbench_video": Fixture(
        seedbench, 3, {"accuracy": 1 / 3}, again=repeat("SEED-Bench.json", "questions", last=True)
    ),
    "mmmu": Fixture(mmmu, 4, {"accuracy": 0.5}, again=mmmu_again, other=DEV, no_media=True),
    "mmmu_test": Fixture(mmmu_test, 4, {}, again=mmmu_test_again, no_media=True),
    "ai2d": Fixture(ai2d("AI2D_TEST.tsv"), 4, {"accuracy": 0.5}, again=repeat("AI2D_TEST.tsv"), no_media=True),
    "ai2d_no_mask": Fixture(
        ai2d("AI2D_TEST_NO_MASK.tsv"), 4, {"accuracy": 0.5}, again=repeat("AI2D_TEST_NO_MASK.tsv"), no_media=True
    ),
    "physbench": Fixture(physbench, 4, {"accuracy": 0.0}, again=repeat("test.json")),
    "physbench_test": Fixture(physbench_test, 4, {}, again=repeat("test.json")),
}
