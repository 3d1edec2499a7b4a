"""Official layouts in their details, and files in which something is missing or stands twice."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from data.media import MediaError, decode_media
from eval.benchmarks.benchmark import BenchmarkError, says
from eval.benchmarks.catalog import CatalogBenchmark
from eval.benchmarks.reader import read_lines
from eval.benchmarks.readers.speech import Excerpt
from tests.eval.benchmarks.fixture import repeat_entry, write
from tests.eval.benchmarks.test_catalogue import ROWS, made, rows_of
from tests.eval.benchmarks.test_defects import prompt_of


def blank_cell(path: Path, row: int, column: str) -> None:
    lines = [line.split("\t") for line in path.read_text().split("\n")]
    lines[1 + row][lines[0].index(column)] = ""
    path.write_text("\n".join("\t".join(line) for line in lines))


def blank_parquet(path: Path, row: int, column: str) -> None:
    rows = pq.read_table(path).to_pylist()
    rows[row][column] = None
    pq.write_table(pa.Table.from_pylist(rows), path)


def blank_json(path: Path, row: int, entry: str) -> None:
    value = json.loads(path.read_bytes())
    value["data"][row][entry] = ""
    write(path, value)


@pytest.mark.parametrize(
    ("name", "file", "blank", "column"),
    [
        ("ai2d", "AI2D_TEST.tsv", blank_cell, "image"),
        ("textvqa_hub", "validation-00000-of-00001.parquet", blank_parquet, "image"),
        ("mmmu", "Art/validation-00000-of-00001.parquet", blank_parquet, "image_1"),
        ("infovqa", "infographicsVQA_val_v1.0_withQT.json", blank_json, "image_local_name"),
    ],
)
def test_an_empty_cell_costs_its_own_sample_and_is_named(
    name: str, file: str, blank: Callable[[Path, int, str], None], column: str, tmp_path: Path
) -> None:
    benchmark = made(name, tmp_path)
    blank(tmp_path / str(ROWS[name].get("folder", name)) / file, 0, column)
    samples = list(benchmark.records())
    lost = []
    for sample in samples:
        for item in sample.record.media.values():
            try:
                decode_media(item, sample.members[item.file])
            except MediaError as error:
                lost.append((sample.key, str(error)))
    assert len(samples) == 4 and len(lost) == 1, "nobody is asked about an image that is not there"
    assert "got an empty cell" in lost[0][1] and "image" in lost[0][1]


def test_questions_of_text_alone_show_nothing(tmp_path: Path) -> None:
    benchmark = made("scienceqa", tmp_path)
    assert [len(sample.record.media) for sample in benchmark.records()] == [1, 1, 1, 0, 0]
    parts = benchmark.score(map(benchmark.gold, rows_of(benchmark)))["scienceqa/accuracy"].parts
    assert (parts["modality: IMG"].n, parts["modality: TXT"].n) == (3, 2)


def test_a_problem_that_stands_twice_under_one_name_is_named(tmp_path: Path) -> None:
    """The JSON parser keeps the last of both, without a word."""
    benchmark = made("scienceqa", tmp_path)
    repeat_entry("problems.json")(tmp_path / "scienceqa")
    assert len(json.loads((tmp_path / "scienceqa" / "problems.json").read_bytes())) == 7
    with pytest.raises(BenchmarkError, match=r"problems\.json'.*expected every entry once, got '0' again"):
        list(benchmark.records())


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    """Talks and questions hold U+2028, U+0085 and form feeds; str.splitlines breaks there and shifts what follows."""
    write(tmp_path / "text", "one\u2028and\x0c the\x85 same\r\ntwo\n\nfour")
    assert read_lines(tmp_path / "text") == ["one\u2028and\x0c the\x85 same", "two", "", "four"]
    assert read_lines(write(tmp_path / "empty", "")) == [] and read_lines(write(tmp_path / "one", "\n")) == [""]
    benchmark = made("mustc_en_de", tmp_path)
    path = tmp_path / "mustc" / "en-de" / "data" / "tst-COMMON" / "txt" / "tst-COMMON.de"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0].replace(", ", ",\u2028"), *lines[1:]]))
    assert [row.answer for row in rows_of(benchmark)][1] == "Hier steht noch ein Satz."
    benchmark = made("mme", tmp_path)
    write(tmp_path / "mme" / "OCR" / "0001.txt", "Is it \x0cso?\tYes\nIs it not?\tNo\n")
    assert len(rows_of(benchmark)) == 28


def test_cuts_are_cut_off_and_not_rounded(tmp_path: Path) -> None:
    """As fairseq reads MuST-C: int(seconds * rate) of both numbers."""
    path = tmp_path / "talk.wav"
    samples = [value / 32_768 for value in range(1, 101)]
    soundfile.write(str(path), samples, 16_000, subtype="PCM_16")
    data = Excerpt("audio", path, start=10.9 / 16_000, duration=5.9 / 16_000).read()
    cut, _ = soundfile.read(io.BytesIO(data), dtype="int16")
    assert cut.tolist() == [11, 12, 13, 14, 15]


def test_mme_keeps_five_subtasks_in_two_folders_and_the_rest_in_one(tmp_path: Path) -> None:
    benchmark = made("mme", tmp_path)
    apart = {path.parent.parent.name for path in benchmark.reader.files if path.parent.name == "questions_answers_YN"}
    assert apart == {"artwork", "celebrity", "landmark", "posters", "scene"}
    meta = rows_of(benchmark)[0].meta
    assert (meta["file"], meta["question"]) == ("0001.png", "Is it so? Please answer yes or no.")
    assert prompt_of(benchmark, "existence/0001/0") == (
        "[image] Is it so?\nAnswer the question using a single word or phrase."
    )


@pytest.mark.parametrize(("name", "metric"), [("mme", "perception"), ("nocaps", "cider"), ("refcoco_masks", "ciou")])
def test_sums_over_the_corpus_mean_nothing_on_a_part(name: str, metric: str, tmp_path: Path) -> None:
    benchmark = made(name, tmp_path)
    rows = [benchmark.gold(row) for row in rows_of(benchmark)]
    assert benchmark.score(rows)[f"{name}/{metric}"].corpus
    if name == "mme":
        assert benchmark.score(rows[:4])["mme/perception"].value == 400.0, "of 2,000: nobody may read this as a score"


def test_a_server_file_is_asked_as_it_is(tmp_path: Path) -> None:
    benchmark = made("mmbench_test", tmp_path)
    rows = rows_of(benchmark)
    assert [row.key for row in rows] == ["0", "1000000", "1", "1000001"]
    assert [row.meta["rotation"] for row in rows] == [0, 1, 0, 1]
    alone = CatalogBenchmark("mmbench_test", ROWS["mmbench_test"], tmp_path)
    path = tmp_path / "mmbench" / "mmbench_test_en_20231003.tsv"
    path.write_text("\n".join(line for line in path.read_text().split("\n") if not line.startswith("100000")))
    assert [row.key for row in rows_of(alone)] == ["0", "1"], "no rotations that the server does not know"


def test_prompts_are_those_that_the_protocols_name(tmp_path: Path) -> None:
    refuse = "When the provided information is insufficient, respond with 'Unanswerable'."
    assert refuse in prompt_of(made("vizwiz", tmp_path), "VizWiz_val_00000000.jpg")
    plain, may_refuse = made("okvqa", tmp_path), made("okvqa_may_refuse", tmp_path)
    assert refuse in prompt_of(may_refuse, "0") and refuse not in prompt_of(plain, "0")
    assert plain.protocol != may_refuse.protocol
    assert made("ai2d", tmp_path).protocol != made("ai2d_no_mask", tmp_path).protocol
    assert prompt_of(made("mmvet", tmp_path), "v1_0") == "[image] What is it?", "nobody is told to think step by step"
    assert "Context: Look." in prompt_of(made("scienceqa", tmp_path), "1")


def test_the_mean_over_questions_is_micro(tmp_path: Path) -> None:
    benchmark = made("mmmu", tmp_path)
    rows = [benchmark.gold(row) for row in rows_of(benchmark)]  # one of Art, three of Math
    wrong = [says(row, "(A)") if "Art" in row.key else row for row in rows]
    assert benchmark.score(wrong)["mmmu/accuracy"].value == 0.75, "the mean over subjects would be 0.5"


def test_the_constant_reply_is_not_chosen_on_what_is_scored(tmp_path: Path) -> None:
    benchmark = made("gqa", tmp_path)
    path = tmp_path / "gqa" / "val_balanced_questions.json"
    value = json.loads(path.read_text())
    write(path, {name: {**row, "answer": "table"} for name, row in value.items()})
    rows = rows_of(benchmark)
    assert [row.answer for row in rows] == ["yes", "no", "yes", "table"]
    assert benchmark.constant(rows[0]).text == "table", "the majority of what is scored would be 'yes'"
    assert benchmark.constant_about == "chosen on at most 20000 answers of files ['val_balanced_questions.json']"
    row = {**ROWS["gqa"], "constant": {"say": "no"}}
    fixed = CatalogBenchmark("gqa", row, tmp_path)
    assert fixed.constant(rows[0]).text == "no" and fixed.constant_about == "'no', fixed before any answer was seen"
    for wrong in ({"say": "a", "reader": {}}, {"reader": {}}, {"sya": "a"}, "yes"):
        with pytest.raises(BenchmarkError, match="constant"):
            CatalogBenchmark("gqa", {**ROWS["gqa"], "constant": wrong}, tmp_path)


def test_a_row_with_another_number_of_cells_is_refused(tmp_path: Path) -> None:
    benchmark = made("covost2_en_de", tmp_path)
    path = tmp_path / "covost2" / "en" / "covost_v2.en_de.test.tsv"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines[:2], lines[2] + "\tmore", *lines[3:]]))
    with pytest.raises(BenchmarkError, match=r"test\.tsv' line 3: row with another number of cells"):
        list(benchmark.records())
