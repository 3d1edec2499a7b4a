"""Who answers, and how: without a model, again from a log, several processes at once, killed and continued."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from data.media import encode_png
from eval.__main__ import main
from eval.askers.asker import Asker, Question
from eval.askers.choose import choose_asker
from eval.askers.scripted import AnswersFileAsker, ConstantAsker, GoldAsker, ReplayAsker
from eval.askers.session import Decoding
from eval.benchmarks.benchmark import Benchmark, BenchmarkError, says
from eval.benchmarks.inputs import InputFiles
from eval.benchmarks.lookup import find_benchmarks
from eval.log import read_log
from eval.predict import PIECE, Asking, predict
from eval.prediction import Prediction, silent
from eval.score import score_files
from tests.eval.conftest import picture
from tests.eval.test_catalog import ROW, write_questions


class Echo(Asker):
    """Says the question's key, and notes what it was asked."""

    def __init__(self, pause: float = 0.0) -> None:
        self.asked: list[str] = []
        self.pause = pause

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"checkpoint_sha256": "echo", "session": {"constrained": False}}

    def settings(self, benchmark: Benchmark) -> Mapping[str, Any]:
        return {"max_new_tokens": 7}

    def ask(self, benchmark: Benchmark, questions: Sequence[Question]) -> list[Prediction | str]:
        time.sleep(self.pause)
        self.asked += [item.sample.key for item in questions]
        rows = (silent(benchmark.name, item.sample) for item in questions)
        return ["refused" if row.key == "q13" else says(row, row.key) for row in rows]


def many(data: Path, number: int, missing: Sequence[int] = ()) -> dict[str, Benchmark]:
    (data / "many").mkdir(parents=True, exist_ok=True)
    questions = [
        {"id": f"q{i}", "question": "Which?", "image": f"{i % 7}.png", "answer": f"q{i}"} for i in range(number)
    ]
    write_questions(data / "many", questions)
    for i in set(range(7)) - set(missing):
        (data / "many" / "three" / f"{i}.png").write_bytes(encode_png(picture(i, 8)))
    reader = {**ROW["reader"]["init_args"], "fields": {"question": "question"}, "meta": []}
    row = {**ROW, "reader": {**ROW["reader"], "init_args": reader}, "folder": "many/three", "constant": {"say": "q0"}}
    (data / "many.yaml").write_text(yaml.safe_dump({"many": row}))
    return find_benchmarks(data, "test", ["many"], [data / "many.yaml"])


def ask(asker: Asker, benchmarks: Mapping[str, Benchmark], out: Path, **asking: Any) -> str:
    text = io.StringIO()
    predict(asker, benchmarks, out, Asking(**asking), Console(file=text, width=250))
    return text.getvalue()


def test_rows_say_how_they_came_about(tmp_path: Path) -> None:
    ask(Echo(), many(tmp_path, 3), tmp_path / "log")
    (row, *_) = read_log(tmp_path / "log").predictions
    assert (row.index, row.generation, row.parsed, row.parse_status) == (0, {"max_new_tokens": 7}, "q0", "parsed")
    assert row.prompt == "user: [image] Which?\nAnswer in one word." and len(row.prompt_sha256) == 64
    header = read_log(tmp_path / "log").header.identity
    assert header["protocols"] == {"many": "three/exact@1"} and header["n_expected"] == {"many": 3}


def test_missing_pictures_and_refusals_cost_their_own_samples_and_are_asked_again(tmp_path: Path) -> None:
    benchmarks = many(tmp_path, 20, missing=[5])
    said = ask(Echo(), benchmarks, tmp_path / "log")
    assert "many 'q5': left out:" in said and "5.png" in said and "many 'q13': left out: refused" in said
    assert "4 samples could not be asked" in said  # 5, 12, 19 and the refused one
    log = read_log(tmp_path / "log")
    assert len(log.keys) == 16 and {item.key for item in log.skipped} == {"q5", "q12", "q13", "q19"}
    entry = score_files([tmp_path / "log"], catalogs=[tmp_path / "many.yaml"])[
        "three/accuracy".replace("three", "many")
    ]
    assert (entry["value"], entry["n"], entry["n_expected"], entry["complete"], entry["skipped"]) == (
        1,
        16,
        20,
        False,
        4,
    )
    (tmp_path / "many" / "three" / "5.png").write_bytes(encode_png(picture(5, 8)))
    again = Echo()
    ask(again, benchmarks, tmp_path / "log")
    assert again.asked == ["q5", "q12", "q13", "q19"]
    assert {item.key for item in read_log(tmp_path / "log").skipped} == {"q13"}


@pytest.mark.parametrize("chunk", [1, 30, 1000])
def test_resuming_is_a_set_difference_whatever_the_batches_were(tmp_path: Path, chunk: int) -> None:
    benchmarks = many(tmp_path, 2 * PIECE + 9)
    ask(Echo(), benchmarks, tmp_path / "log", limit=70, chunk=chunk)
    second = Echo()
    ask(second, benchmarks, tmp_path / "log", chunk=17)
    assert second.asked == [f"q{i}" for i in (13, *range(70, 2 * PIECE + 9))]  # 13 was refused
    keys = [row.key for row in read_log(tmp_path / "log").predictions]
    assert keys == [f"q{i}" for i in range(2 * PIECE + 9) if i != 13]


def test_pieces_that_others_hold_are_left_to_them(tmp_path: Path) -> None:
    benchmarks = many(tmp_path, 3 * PIECE)

    class Meeting(Echo):
        """While it answers its first piece, another process joins and does what is free."""

        def ask(self, benchmark: Benchmark, questions: Sequence[Question]) -> list[Prediction | str]:
            if not self.asked:
                other = Echo()
                said = ask(other, benchmarks, tmp_path / "log", chunk=PIECE)
                assert len(other.asked) == 2 * PIECE and other.asked[0] == f"q{PIECE}"
                assert f"process {os.getpid()} on" in said and "may still be at work" in said
            return super().ask(benchmark, questions)

    first = Meeting()
    said = ask(first, benchmarks, tmp_path / "log", chunk=PIECE)
    assert first.asked == [f"q{i}" for i in range(PIECE)]
    assert f"{3 * PIECE - 1} of {3 * PIECE} predictions are there" in said
    log = read_log(tmp_path / "log")
    assert (log.duplicates, len(log.keys)) == (0, 3 * PIECE - 1)
    assert [row.index for row in log.rows("many")] == [i for i in range(3 * PIECE) if i != 13]


def test_killed_in_the_middle_by_another_process(tmp_path: Path) -> None:
    """kill -9 loses at most the chunk in work; who comes next takes over at once and asks the rest, nothing twice."""
    benchmarks, out = many(tmp_path, 1000), tmp_path / "log"
    child = multiprocessing.get_context("fork").Process(
        target=ask, args=(Echo(0.02), benchmarks, out), kwargs={"chunk": 8}
    )
    child.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and sum(len(path.read_bytes()) for path in out.glob("*.jsonl")) < 20_000:
        time.sleep(0.01)
    child.kill()
    child.join()
    assert list((out / "claims").glob("*.claim"))  # it held something
    before = {row.key for row in read_log(out).predictions}
    assert 0 < len(before) < 999
    rest = Echo()
    ask(rest, benchmarks, out)
    assert sorted(rest.asked) == sorted({f"q{i}" for i in range(1000)} - before)
    log = read_log(out)
    assert (len(log.keys), log.duplicates) == (999, 0)


def test_two_processes_on_one_folder_ask_everything_once(tmp_path: Path) -> None:
    benchmarks, out = many(tmp_path, 6 * PIECE), tmp_path / "log"
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=ask, args=(Echo(0.01), benchmarks, out), kwargs={"chunk": PIECE}) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    log = read_log(out)
    assert (len(log.keys), log.duplicates) == (6 * PIECE - 1, 0)  # one is refused
    assert len(list(out.glob("*.jsonl"))) == 2 and not list(out.rglob("*.claim"))
    third = Echo()
    ask(third, benchmarks, out)
    assert third.asked == ["q13"], "what one of them asked is not asked again"


def test_a_full_disk_ends_the_run_and_the_same_command_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many(tmp_path, 20)
    out = tmp_path / "log.jsonl"
    command = ["predict", "--model", "constant:yes", "--benchmark", "many", "--data", str(tmp_path)]
    command += ["--catalog", str(tmp_path / "many.yaml"), "--out", str(out)]
    assert main([*command, "--limit", "4"]) == 0
    before = out.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
    try:
        assert main(command) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert "log.jsonl: cannot be written: File too large; what it holds so far is whole" in said.replace("\n", " ")
    assert out.read_bytes() == before
    assert main(command) == 0
    log = read_log(out)
    assert (len(log.keys), log.torn, log.duplicates) == (20, 0, 0) and out.read_bytes().startswith(before)


def test_gold_constant_and_replay(tmp_path: Path) -> None:
    benchmarks = many(tmp_path, 9)
    ask(GoldAsker(), benchmarks, tmp_path / "gold")
    ask(ConstantAsker(), benchmarks, tmp_path / "best")
    ask(ConstantAsker("q4"), benchmarks, tmp_path / "q4")
    ask(ReplayAsker(tmp_path / "gold"), benchmarks, tmp_path / "again")
    values = {}
    for name in ("gold", "best", "q4", "again"):
        values[name] = score_files([tmp_path / name], catalogs=[tmp_path / "many.yaml"])["many/accuracy"]["value"]
    assert values == {"gold": 1.0, "best": pytest.approx(1 / 9), "q4": pytest.approx(1 / 9), "again": 1.0}
    assert read_log(tmp_path / "again").header.identity["checkpoint_sha256"] == "gold"
    with pytest.raises(ValueError, match="means nothing for GoldAsker"):
        ask(GoldAsker(), benchmarks, tmp_path / "blind", control="blind")


def test_a_replay_under_another_prompt_is_refused_sample_by_sample(tmp_path: Path) -> None:
    benchmarks = many(tmp_path, 2)
    ask(GoldAsker(), benchmarks, tmp_path / "gold")
    row = yaml.safe_load((tmp_path / "many.yaml").read_text())
    row["many"]["prompt"] = ["{question} Now!"]
    (tmp_path / "many.yaml").write_text(yaml.safe_dump(row))
    changed = find_benchmarks(tmp_path, "test", ["many"], [tmp_path / "many.yaml"])
    assert "was asked with another prompt" in ask(ReplayAsker(tmp_path / "gold"), changed, tmp_path / "again")


def test_answers_files_are_matched_by_id_and_by_question(tmp_path: Path) -> None:
    questions = [
        {"id": "a", "question": "Is it red?", "answer": "yes", "question_id": "x.png"},
        {"id": "b", "question": "Is it blue?", "answer": "no", "question_id": "x.png"},
        {"id": "c", "question": "Is it?", "answer": "no"},
        {"id": "d", "question": "Where?", "answer": "no"},
    ]
    reader = {"file": "questions.jsonl", "meta": ["question_id"]}
    row = {**ROW, "reader": {**ROW["reader"], "init_args": reader}, "prompt": ["{question}", "One word."]}
    write_questions(tmp_path, questions)
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump({"three": row}))
    benchmarks = find_benchmarks(tmp_path, "test", ["three"], [tmp_path / "rows.yaml"])
    answers = [
        {"question_id": "x.png", "prompt": "Is it  blue?\nOne word.", "text": "No"},
        {"question_id": "x.png", "prompt": "Is it red?\nOne word.", "text": "Yes"},
        {"question_id": "c", "prompt": "Is it?", "text": "No."},
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in answers))
    said = ask(AnswersFileAsker(path), benchmarks, tmp_path / "log")
    assert "'d': left out: expected one answer" in said
    entry = score_files([tmp_path / "log"], catalogs=[tmp_path / "rows.yaml"])["three/accuracy"]
    assert (entry["value"], entry["n"], entry["n_expected"]) == (1.0, 3, 4)
    path.write_text('{"text": "no id"}\n')
    with pytest.raises(ValueError, match="line 1: expected question_id and text"):
        AnswersFileAsker(path)


def test_duplicate_ids_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    benchmarks = many(tmp_path, 5)
    file = tmp_path / "many" / "three" / "questions.jsonl"
    file.write_text(file.read_text() + file.read_text().splitlines()[2] + "\n")
    with pytest.raises(BenchmarkError, match=r"'q2' again in .*questions\.jsonl"):
        ask(Echo(), benchmarks, tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_a_reply_of_a_hundred_thousand_characters(tmp_path: Path) -> None:
    long = "käse\n" * 20_000
    ask(ConstantAsker(long), many(tmp_path, 3), tmp_path / "log")
    log = read_log(tmp_path / "log")
    assert [row.text for row in log.rows("many")] == [long] * 3
    assert score_files([tmp_path / "log"], catalogs=[tmp_path / "many.yaml"])["many/accuracy"]["value"] == 0.0


def test_files_without_references(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(2):
        (folder / f"{i}.png").write_bytes(encode_png(picture(i, 8)))
    lines = [{"question": "what?", "images": ["0.png", "1.png"]}, {"id": "mine", "text": "say hello"}]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    benchmark = InputFiles("mine", [folder], "describe it")
    ask(Echo(), {"mine": benchmark}, tmp_path / "log")
    rows = read_log(tmp_path / "log").predictions
    assert [row.prompt for row in rows] == [
        "user: [image] describe it",
        "user: [image] describe it",
        "user: [image] [image] what?",
        "user: say hello",
    ]
    assert [row.key for row in rows][2:] == ["questions.jsonl:1", "mine"]
    assert main(["score", str(tmp_path / "log")]) == 2
    assert "nothing to score" in capsys.readouterr().err
    command = ["predict", "--model", "constant:x", "--input", str(folder), "--out", str(tmp_path / "command")]
    assert main(command) == 2
    assert "expected a prompt" in capsys.readouterr().err
    assert main([*command, "--prompt", "what?"]) == 0
    assert len(read_log(tmp_path / "command").keys) == 4
    with pytest.raises(BenchmarkError, match="benchmark name"):
        InputFiles("../mine", [folder])
    with pytest.raises(BenchmarkError, match="got none"):
        list(InputFiles("mine", [tmp_path / "log" / "claims"], "x").records())


def test_the_model_is_chosen_by_what_is_said(tmp_path: Path) -> None:
    assert isinstance(choose_asker(None, "gold", Decoding()), GoldAsker)
    for model in ("golden", "gold:1", "replay", "answers:"):
        with pytest.raises(ValueError, match="model: expected transformers"):
            choose_asker(None, model, Decoding())
    with pytest.raises(ValueError, match="got neither"):
        choose_asker(None, None, Decoding())
    with pytest.raises(ValueError, match="checkpoint directory"):
        choose_asker(tmp_path, None, Decoding())
    with pytest.raises(ValueError, match="batch_size: expected at least 1"):
        Decoding(batch_size=0)
