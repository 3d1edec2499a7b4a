"""The catalogue: rows become benchmarks, prompts are filled, and nothing that a row names runs unasked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.__main__ import main
from eval.benchmarks.benchmark import BenchmarkError
from eval.benchmarks.catalog import CatalogBenchmark, build, read_catalog
from eval.benchmarks.lookup import find_benchmarks
from eval.benchmarks.parser import Verbatim
from eval.benchmarks.prompt import Prompt
from eval.benchmarks.quickstart import NAMES
from eval.benchmarks.reader import Item, MediaFile, Reader, Shown
from eval.prediction import Prediction, reference_of

ROW: dict[str, Any] = {
    "title": "Three questions",
    "protocol": "three/exact@1",
    "media": "image",
    "reader": {
        "class_path": "eval.benchmarks.readers.json_lines.JsonLinesReader",
        "init_args": {
            "file": "questions.jsonl",
            "fields": {"question": "question", "options": "options"},
            "media": {"image": "image"},
            "meta": ["kind"],
        },
    },
    "prompt": ["Context: {hint}", "{question}", "{options}", "Answer in one word."],
    "parser": {"class_path": "eval.benchmarks.parser.Verbatim"},
    "metric": {"class_path": "eval.benchmarks.metric.ExactMatch", "init_args": {"parts": ["kind"]}},
    "constant": {"say": "red"},
}
QUESTIONS = [
    {"id": f"q{i}", "question": "Which?", "options": ["red", "blue"], "image": f"{i // 2}.png", "answer": "red"}
    | {"kind": "colour" if i else "shape"}
    for i in range(3)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_questions(tmp_path, QUESTIONS)
    return tmp_path


def write_questions(data: Path, questions: list[dict[str, Any]]) -> None:
    (data / "three").mkdir(exist_ok=True)
    (data / "three" / "questions.jsonl").write_text("".join(json.dumps(item) + "\n" for item in questions))


def rows_of(benchmark: CatalogBenchmark) -> list[Prediction]:
    return [Prediction(benchmark.name, item.key, reference=reference_of(item)) for item in benchmark.records()]


def test_a_row_becomes_a_benchmark(data: Path) -> None:
    benchmark = CatalogBenchmark("three", ROW, data)
    samples = list(benchmark.records())
    texts = [part.text for part in samples[0].record.messages[0].content if part.type == "text"]
    assert texts == ["Which?\nA. red\nB. blue\nAnswer in one word."]
    assert [part.type for part in samples[0].record.messages[0].content] == ["image", "text"]
    rows = [benchmark.gold(row) for row in rows_of(benchmark)]
    score = benchmark.score(iter(rows))["three/accuracy"]
    assert (score.value, score.n) == (1.0, 3)
    assert rows[0].cluster == rows[1].cluster != rows[2].cluster  # two questions about one picture
    rows[0] = Prediction("three", "q0", text="blue.", reference=rows[0].reference)
    rows[1] = Prediction("three", "q1", text="red", finish_reason="length", reference=rows[1].reference)
    score = benchmark.score(iter(rows))["three/accuracy"]
    assert score.value == pytest.approx(1 / 3)
    # Two clusters with deviations -2/3 and +2/3: sqrt(2 / 9 * (4/9 + 4/9))
    assert score.stderr == pytest.approx((2 / 9 * 8 / 9) ** 0.5)
    assert score.parts["kind: shape"].value == 0.0 and score.parts["kind: colour"].value == 0.5
    assert [benchmark.answer(row).status for row in rows] == ["parsed", "cut at the length limit", "parsed"]
    assert benchmark.score(map(benchmark.constant, rows))["three/accuracy"].value == 1.0


def test_media_are_read_when_asked_for_and_a_missing_one_is_named(data: Path) -> None:
    sample = next(CatalogBenchmark("three", ROW, data).records())
    (file,) = (item.file for item in sample.record.media.values())
    with pytest.raises(ValueError, match=r"0\.png"):
        sample.members[file]
    (data / "three" / "0.png").write_bytes(b"later")
    assert sample.members[file] == b"later"


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([*QUESTIONS, QUESTIONS[1]], "'q1' again"),
        ([{"id": "q"}], "line 1: expected the entries"),
        ([{**QUESTIONS[0], "image": "../../secret.png"}], "below"),
    ],
)
def test_bad_files_are_named(data: Path, questions: list[dict[str, Any]], message: str) -> None:
    write_questions(data, questions)
    with pytest.raises(BenchmarkError, match=message):
        list(CatalogBenchmark("three", ROW, data).records())


def test_a_missing_file_and_a_torn_one(data: Path) -> None:
    file = data / "three" / "questions.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    benchmark = CatalogBenchmark("three", ROW, data)
    with pytest.raises(BenchmarkError, match="line 3: expected JSON"):
        list(benchmark.records())
    file.unlink()
    assert benchmark.reader.missing == (file,)
    with pytest.raises(BenchmarkError, match="cannot be read"):
        list(benchmark.records())
    with pytest.raises(BenchmarkError, match="cannot be read"):
        _ = benchmark.data_sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "expected the entries"),
        ({"reder": 1}, r"unknown \['reder'\]"),
        ({"protocol": "three"}, "NAME/VARIANT@VERSION"),
        ({"media": "smell"}, "media: expected one of"),
        ({"parser": {"class_path": "os.system"}}, "not allowed"),
        ({"metric": {"class_path": "eval.benchmarks.parser.Verbatim"}}, "expected a Metric"),
        ({"parser": {"class_path": "eval.benchmarks.parser.Verbatim", "init_args": {"shout": True}}}, "shout"),
        ({"parser": {"class_path": "eval.benchmarks.parser.Verbatim", "args": {}}}, r"got \['args'\]"),
    ],
)
def test_bad_rows_are_refused(data: Path, change: dict[str, Any], message: str) -> None:
    row = {name: value for name, value in {**ROW, **change}.items() if value is not None}
    with pytest.raises(BenchmarkError, match=message):
        CatalogBenchmark("three", row, data)


def test_a_class_that_is_not_allowed_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted_reader.py").write_text("raise SystemExit('it ran')\nclass Mine: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BenchmarkError, match="not allowed"):
        build({"class_path": "planted_reader.Mine"}, "reader", Reader, root=tmp_path)
    assert "planted_reader" not in sys.modules


def test_prompts_interleave_and_leave_out_what_is_empty() -> None:
    media = {"a": MediaFile("image", data=b"1"), "b": MediaFile("image", data=b"2"), "c": MediaFile("audio", data=b"3")}
    question = ("Compare ", Shown("b"), " with {hint}")
    item = Item("k", {"question": question, "hint": "", "options": ["x", ("y ", Shown("a"))]}, media)
    parts = Prompt(["Hint: {hint}", "{question}?", "{options}"], "({letter}) {text}").parts(item)
    assert [(part.type, part.text or part.media) for part in parts] == [
        ("audio", "c"),  # what no field places comes first
        ("text", "Compare"),
        ("image", "b"),
        ("text", "with {hint}?\n(A) x\n(B) y"),  # what a field holds is not filled again
        ("image", "a"),
    ]
    with pytest.raises(ValueError, match=r"got \['z'\]"):
        Prompt("{question}").parts(Item("k", {"question": (Shown("z"),)}, media))
    with pytest.raises(ValueError, match="at most 26"):
        Prompt("{options}").parts(Item("k", {"options": ["x"] * 27}))


def test_an_empty_reply_is_no_answer() -> None:
    assert Verbatim().parse(Prediction("b", "k", text=" ")).status == "empty reply"
    assert Verbatim(allow_empty=True).parse(Prediction("b", "k", text=" ")).parsed


def test_the_shipped_catalogue_builds(tmp_path: Path) -> None:
    rows = read_catalog()
    assert not set(rows) & set(NAMES)
    for name, row in rows.items():
        benchmark = CatalogBenchmark(name, row, tmp_path)
        assert benchmark.reader.files and benchmark.metrics


def test_lookup_and_list(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = data / "mine.yaml"
    mine.write_text(yaml.safe_dump({"three": ROW}))
    assert list(find_benchmarks(data, "test", ["all"], [mine])) == ["three"]
    with pytest.raises(BenchmarkError, match="got none"):
        find_benchmarks(data)
    with pytest.raises(BenchmarkError, match=r"got \['four'\]"):
        find_benchmarks(data, "test", ["four"], [mine])
    assert main(["list", "--data", str(data), "--catalog", str(mine)]) == 0
    shown = capsys.readouterr().out
    assert "three/exact@1" in shown and "yes" in shown
    mine.write_text("three: [1]")
    assert main(["list", "--data", str(data), "--catalog", str(mine)]) == 2
    assert "mine.yaml" in capsys.readouterr().err
