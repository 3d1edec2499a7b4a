"""From logs to one table: controls, constrained figures, missing samples, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.records import Part
from eval.__main__ import main
from eval.benchmarks.benchmark import Benchmark
from eval.benchmarks.quickstart import quickstart_benchmarks
from eval.controls import CONTROLS
from eval.log import LogError
from eval.prediction import Prediction
from eval.score import PARSES_BY_CONSTRUCTION, score_files, verdict
from tests.eval.conftest import answer_sample, call_sample, gold, write_log, write_shards

Run = tuple[dict[str, Benchmark], list[Prediction]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    seg = Part("call", task="seg", prompt="red 7")
    answers = [answer_sample("image_qa", i, str(i % 4)) for i in range(8)]
    calls = [call_sample("routing", i, [seg]) for i in range(4)]
    for split in ("test", "val"):
        write_shards(tmp_path, split, "image_qa", answers)
        write_shards(tmp_path, split, "routing", calls)
    benchmarks = quickstart_benchmarks(tmp_path, "test", ["image_qa", "routing"])
    return benchmarks, [gold(item, name) for name, own in benchmarks.items() for item in own.records()]


def test_model_controls_and_constrained_end_in_one_table(run: Run, tmp_path: Path) -> None:
    benchmarks, rows = run
    cut = [replace(row, finish_reason="length") if row.key.endswith("003") else row for row in rows]
    own = write_log(tmp_path / "own.jsonl", benchmarks, cut)
    silent = [replace(row, text="0", calls=[]) for row in rows]
    only = {"image_qa": benchmarks["image_qa"]}
    blind = write_log(tmp_path / "blind.jsonl", only, [r for r in silent if r.benchmark == "image_qa"], control="blind")
    zeroed = write_log(tmp_path / "zeroed.jsonl", benchmarks, silent[:5] + silent[8:], control="zeroed")
    legal = write_log(tmp_path / "legal.jsonl", {"routing": benchmarks["routing"]}, rows[8:], constrained=True)
    scores = score_files([blind, own, legal, zeroed])

    image_qa = scores["image_qa"]
    assert (image_qa["value"], image_qa["n"], image_qa["n_expected"]) == (7 / 8, 8, 8)
    assert image_qa["controls"]["blind"] == image_qa["controls"]["constant"] == 0.25
    assert image_qa["controls"]["zeroed"] == pytest.approx(2 / 5)
    assert image_qa["controls_n"] == {"blind": 8, "zeroed": 5, "constant": 8}
    assert image_qa["controls_na"] == {"shuffled": "not run", "random_weights": "not run"}

    routing = scores["routing_f1"]
    assert routing["value"] == pytest.approx(2 * 3 / 8)
    assert routing["constrained"]["value"] == 1.0
    assert "blind" in routing["controls_na"] and routing["controls"]["zeroed"] == 0.0
    failures = scores["parse_failure"]
    assert (failures["value"], failures["constrained"]["value"]) == (0.25, 0.0)
    assert failures["parts"]["image_qa"]["value"] == 1 / 8
    assert failures["controls_na"]["constant"] == PARSES_BY_CONSTRUCTION

    for entry in scores.values():
        assert set(entry["controls"]) == set(CONTROLS)
        nothing = {name for name, value in entry["controls"].items() if value is None}
        assert nothing == set(entry["controls_na"])
        assert entry["protocol"] and len(entry["data_sha256"]) == 64


def test_missing_samples_are_shown_and_the_command_writes_the_file(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmarks, rows = run
    own = write_log(tmp_path / "own.jsonl", benchmarks, rows[:6] + rows[8:])
    assert main(["score", str(own), "--out", str(tmp_path / "scores.json")]) == 0
    table = capsys.readouterr().out
    assert "image_qa" in table and "6 of 8" in table
    entry = json.loads((tmp_path / "scores.json").read_text())["image_qa"]
    assert (entry["n"], entry["n_expected"]) == (6, 8)


def test_logs_that_do_not_belong_together_are_refused(run: Run, tmp_path: Path) -> None:
    benchmarks, rows = run
    own = write_log(tmp_path / "own.jsonl", benchmarks, rows)
    with pytest.raises(LogError, match="already"):
        score_files([own, write_log(tmp_path / "copy.jsonl", benchmarks, rows)])
    blind = write_log(tmp_path / "blind.jsonl", benchmarks, rows, control="blind")
    with pytest.raises(ValueError, match="at least one log of the model"):
        score_files([blind])
    blind.write_text(blind.read_text().replace("c0ffee", "decaf"))
    with pytest.raises(LogError, match="checkpoint_sha256"):
        score_files([own, blind])
    write_shards(tmp_path, "test", "image_qa", [answer_sample("image_qa", i, "no") for i in range(8)])
    with pytest.raises(LogError, match="not the data"):
        score_files([own])


def test_verdicts() -> None:
    nothing = dict.fromkeys(CONTROLS)
    assert verdict("wer", {"value": 0.08, "controls": nothing})[1] is True
    assert verdict("wer", {"value": 0.081, "controls": nothing})[1] is False
    assert verdict("image_qa", {"value": 0.9, "controls": {**nothing, "blind": 0.31}})[1] is False
    assert verdict("image_qa", {"value": 0.9, "controls": {**nothing, "blind": 0.2}})[1] is True
    assert verdict("node_family", {"value": 0.5, "controls": {**nothing, "zeroed": 0.41}})[1] is False
    assert verdict("node_family", {"value": 0.5, "controls": {**nothing, "zeroed": 0.3}})[1] is True
    assert verdict("node_family", {"value": 0.5, "controls": nothing}) == ("", None)
