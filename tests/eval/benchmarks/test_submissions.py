"""The files that servers take: their form, that nothing is lost, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from eval.__main__ import main
from eval.askers.asker import Question
from eval.askers.scripted import GoldAsker, ScriptedAsker
from eval.benchmarks.benchmark import Benchmark, BenchmarkError, says
from eval.benchmarks.catalog import build
from eval.benchmarks.metric import Answered
from eval.benchmarks.submissions.submission import Submission
from eval.log import LogError
from eval.predict import Asking, predict
from eval.prediction import Prediction, silent
from eval.submit import submit_log
from tests.eval.benchmarks.test_catalogue import ROWS, TO_SERVERS, made, rows_of


class Saying(ScriptedAsker):
    """Says what a function makes of a row."""

    def __init__(self, reply: Callable[[Prediction], str]) -> None:
        super().__init__("saying", "saying")
        self.reply = reply

    def ask(self, benchmark: Benchmark, questions: list[Question]) -> list[Prediction | str]:  # type: ignore[override]
        rows = (silent(benchmark.name, item.sample) for item in questions)
        return [says(row, self.reply(row)) for row in rows]


def submitted(name: str, data: Path, asker: ScriptedAsker, ending: str = ".json", **asking: Any) -> Path:
    benchmark = made(name, data)
    predict(asker, {name: benchmark}, data / "log", Asking(**asking), Console(quiet=True))
    out = data / f"out{ending}"
    submit_log(data / "log", out)
    return out


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("textvqa_test", {"question_id": 34602, "answer": "red dog"}),
        ("vizwiz_test", {"image": "VizWiz_val_00000000.jpg", "answer": "red dog"}),
        ("docvqa_test", {"questionId": 300, "answer": "The Red dog."}),
        ("infovqa_test", {"questionId": 0, "answer": "The Red dog."}),
        ("nocaps_test", {"image_id": 0, "caption": "The Red dog."}),
        ("coco_captions", {"image_id": 500, "caption": "The Red dog."}),
        ("gqa", {"questionId": "q0", "prediction": "the red dog"}),
    ],
)
def test_lists_of_answers(name: str, first: dict[str, Any], tmp_path: Path) -> None:
    out = submitted(name, tmp_path, Saying(lambda row: "The Red dog."))
    rows = json.loads(out.read_text())
    assert len(rows) == 4 and rows[0] == first
    assert not list(tmp_path.glob("*.part"))


def test_the_vqa_server_wants_every_question_of_the_test_set(tmp_path: Path) -> None:
    out = submitted("vqav2_testdev", tmp_path, Saying(lambda row: "The Red dog."))
    rows = json.loads(out.read_text())
    assert rows[:4] == [{"question_id": 10 * i, "answer": "red dog"} for i in range(4)]
    assert rows[4:] == [{"question_id": 7, "answer": ""}]
    (tmp_path / "vqav2" / "v2_OpenEnded_mscoco_test2015_questions.json").unlink()
    with pytest.raises(BenchmarkError, match=r"test2015_questions\.json': cannot be read"):
        submit_log(tmp_path / "log", tmp_path / "again.json")
    assert not list(tmp_path.glob("again*"))


def test_physbench_and_objects_by_id(tmp_path: Path) -> None:
    out = submitted("physbench_test", tmp_path, Saying(lambda row: "B. right" if row.key != "1" else "cannot tell"))
    assert json.loads(out.read_text()) == [{"idx": i, "answer": "" if i == 1 else "B"} for i in range(4)]
    out = submitted("mmmu_test", tmp_path / "m", Saying(lambda row: "about 42" if "Math_3" in row.key else "(B)"))
    assert json.loads(out.read_text()) == {
        "test_Art_1": "B",
        "test_Math_1": "B",
        "test_Math_2": "B",
        "test_Math_3": "about 42",
    }
    out = submitted("aokvqa_choice", tmp_path / "a", GoldAsker())
    assert json.loads(out.read_text()) == {f"id{i}": "blue" if i < 3 else "green" for i in range(5)}
    out = submitted("aokvqa_direct", tmp_path / "d", GoldAsker())
    assert json.loads(out.read_text())["id0"] == "blue"
    out = submitted("aokvqa_choice_test", tmp_path / "t", Saying(lambda row: "C" if row.key != "id0" else "none"))
    assert json.loads(out.read_text()) == {f"id{i}": "green" if i else "" for i in range(5)}


def test_detections(tmp_path: Path) -> None:
    out = submitted("coco_detection", tmp_path, GoldAsker())
    rows = json.loads(out.read_text())
    assert rows[0] == {"image_id": 0, "category_id": 3, "bbox": [2.0, 2.0, 6.0, 4.0], "score": 1.0}
    assert [row["image_id"] for row in rows] == [0, 1, 1, 2]


def test_workbooks_keep_texts_as_they_are(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    replies = {"0": "https://a.example is what I see", "1000000": "=A1", "1": "A", "1000001": "no idea\nat all"}
    out = submitted("mmbench_test", tmp_path, Saying(lambda row: replies[row.key]), ".xlsx")
    sheet = openpyxl.load_workbook(out).active
    header, *rows = [[cell.value for cell in row] for row in sheet.iter_rows()]
    assert header == ["index", "question", "A", "B", "C", "D", "prediction"]
    assert [row[0] for row in rows] == [0, 1_000_000, 1, 1_000_001], "every row of the file, in its order"
    by_index = {row[0]: row for row in rows}
    assert by_index[0][2:4] == ["https://blue.example", "=1+1"] and by_index[1_000_000][6] == "=A1"
    assert by_index[0][6] == "https://a.example is what I see" and by_index[1][6] == "A"
    assert by_index[1_000_001][6] == "no idea\nat all"
    assert not any(cell.data_type == "f" or cell.hyperlink for row in sheet.iter_rows() for cell in row)


def test_what_a_workbook_cannot_hold_is_refused_and_a_table_holds_it(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    benchmark = made("mmbench_test", tmp_path)
    long = "word " * 20_000
    asker = Saying(lambda row: long if row.key == "1" else "a\x07b")
    predict(asker, {"mmbench_test": benchmark}, tmp_path / "log", Asking(), Console(quiet=True))
    with pytest.raises(BenchmarkError, match=r"row 1, prediction.*write \.tsv or \.csv"):
        submit_log(tmp_path / "log", tmp_path / "out.xlsx")
    assert not list(tmp_path.glob("out*"))
    submit_log(tmp_path / "log", tmp_path / "out.tsv")
    csv.field_size_limit(200_000)
    with (tmp_path / "out.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [len(row["prediction"]) for row in rows] == [3, 3, len(long.strip()), 3]


def test_mme_files_are_what_its_script_reads(tmp_path: Path) -> None:
    out = submitted("mme", tmp_path, Saying(lambda row: "Yes,\tit\nis" if row.answer == "Yes" else "No"), "")
    assert len(list(out.iterdir())) == 14 and (out / "OCR.txt").is_file()
    for path in out.iterdir():
        lines = path.read_text().splitlines()
        assert len(lines) == 2, "two questions of one image, one after the other"
        image, question, gold, reply = lines[0].split("\t")
        assert (image, gold, reply) == ("0001.png", "Yes", "Yes, it is")
        assert question == "Is it so? Please answer yes or no."


def test_hypotheses_are_lines_in_the_order_of_the_references(tmp_path: Path) -> None:
    out = submitted("covost2_en_de", tmp_path, Saying(lambda row: f"{row.key}\nzwei  Zeilen"), ".txt")
    assert out.read_text().splitlines()[0] == "common_voice_0.mp3 zwei Zeilen"
    assert len(out.read_text().splitlines()) == 4


def test_missing_predictions_are_refused_or_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = made("vqav2_testdev", tmp_path)
    asker = Saying(lambda row: "yes")
    predict(asker, {"vqav2_testdev": benchmark}, tmp_path / "log", Asking(limit=3), Console(quiet=True))
    with pytest.raises(LogError, match=r"1 samples of 'vqav2_testdev' lack predictions, such as '30'"):
        submit_log(tmp_path / "log", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
    command = ["submit", str(tmp_path / "log"), "--out", str(tmp_path / "out.json")]
    assert main(command) == 2
    assert "--incomplete" in capsys.readouterr().err
    assert main([*command, "--incomplete"]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [row["answer"] for row in rows] == ["yes", "yes", "yes", "", ""], "one was not asked, one is filled in"
    assert "not asked" in capsys.readouterr().out
    assert main(["submit", str(tmp_path / "log"), "--out", str(tmp_path / "out.xlsx"), "--incomplete"]) == 2
    assert "ends in .json" in capsys.readouterr().err


def test_several_benchmarks_go_into_a_folder(tmp_path: Path) -> None:
    benchmarks = {name: made(name, tmp_path) for name in ("vizwiz_test", "vizwiz", "pope")}
    predict(Saying(lambda row: "yes"), benchmarks, tmp_path / "log", Asking(), Console(quiet=True))
    written = submit_log(tmp_path / "log", tmp_path / "sent")
    assert [item.benchmark for item in written] == ["vizwiz_test", "vizwiz"], "POPE has no server"
    assert sorted(path.name for path in (tmp_path / "sent").iterdir()) == ["vizwiz.json", "vizwiz_test.json"]
    with pytest.raises(BenchmarkError, match="pope: has no submission"):
        submit_log(tmp_path / "log", tmp_path / "sent", ["pope"])
    with pytest.raises(BenchmarkError, match=r"got \['gqa'\]"):
        submit_log(tmp_path / "log", tmp_path / "sent", ["gqa"])


def test_a_failed_write_leaves_the_former_file(tmp_path: Path) -> None:
    submission: Submission = build(
        {"class_path": "eval.benchmarks.submissions.rows.JsonRows", "init_args": {"entries": {"id": "number"}}},
        "submission",
        Submission,
    )
    benchmark = made("vizwiz_test", tmp_path)
    (tmp_path / "out.json").write_text("what was there")
    answers = [Answered(row, benchmark.answer(row)) for row in rows_of(benchmark)]
    with pytest.raises(BenchmarkError, match="expected a number for an id"):
        submission.write(answers, tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == "what was there" and not list(tmp_path.glob("*.part"))
    with pytest.raises(BenchmarkError, match=r"expected one of .* got 'anser'"):
        build({**ROWS["vizwiz"]["submission"], "init_args": {"entries": {"a": "anser"}}}, "s", Submission)


def test_every_row_for_a_server_says_what_it_takes() -> None:
    assert len(TO_SERVERS) == 11 and all("submission" in ROWS[name] for name in TO_SERVERS)
