"""From logs to one table: controls, constrained figures, missing samples, refusals."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from data.records import Part
from eval.__main__ import main
from eval.askers.scripted import ConstantAsker, GoldAsker
from eval.benchmarks import catalog
from eval.benchmarks.benchmark import Benchmark
from eval.benchmarks.lookup import find_benchmarks
from eval.benchmarks.metric import Answered, Metric
from eval.benchmarks.quickstart import quickstart_benchmarks
from eval.controls import CONTROLS
from eval.log import LogError
from eval.metrics.statistics import Score
from eval.predict import Asking, predict
from eval.prediction import Prediction
from eval.score import PARSES_BY_CONSTRUCTION, score_files, verdict
from eval.tally import Tally
from tests.eval.conftest import answer_sample, call_sample, gold, write_log, write_shards
from tests.eval.test_catalog import QUESTIONS, ROW, write_questions

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


class CorpusMetric(Metric):
    """A number of the corpus as a whole."""

    names = ("corpus",)

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        tally = Tally()
        for item in answers:
            tally.add(item.row, float(item.answer.parsed))
        return {"corpus": tally.mean("all of it", corpus=True, scale=100.0)}

    def right(self, answered: Answered) -> bool:
        return answered.answer.parsed


def test_a_limit_makes_a_corpus_metric_meaningless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = f"{__name__}.CorpusMetric"
    monkeypatch.setattr(catalog, "ALLOWED_CLASSES", catalog.ALLOWED_CLASSES | {mine})
    write_questions(tmp_path, QUESTIONS)
    rows = tmp_path / "rows.yaml"
    rows.write_text(yaml.safe_dump({"three": {**ROW, "metric": {"class_path": mine}}}))
    benchmarks = find_benchmarks(tmp_path, "test", ["three"], [rows])
    for limit, out in ((None, "all"), (2, "part")):
        predict(GoldAsker(), benchmarks, tmp_path / out, Asking(limit=limit), Console(quiet=True))
    assert "meaningless" not in score_files([tmp_path / "all"], catalogs=[rows])["three/corpus"]
    assert score_files([tmp_path / "part"], catalogs=[rows])["three/corpus"]["meaningless"]
    assert main(["score", str(tmp_path / "part"), "--catalog", str(rows)]) == 0
    shown = capsys.readouterr().out
    assert "100.000 ?" in shown and "means nothing on a part" in shown


def test_memory_does_not_grow_with_what_was_said(tmp_path: Path) -> None:
    """Ten times as many replies of ten thousand characters each: what is kept of them is a few numbers."""
    write_questions(tmp_path, [{**QUESTIONS[0], "id": f"q{i}"} for i in range(240)])
    rows = tmp_path / "rows.yaml"
    rows.write_text(yaml.safe_dump({"three": ROW}))
    benchmarks = find_benchmarks(tmp_path, "test", ["three"], [rows])
    peaks = []
    for number in (24, 240):
        out = tmp_path / str(number)
        predict(ConstantAsker("x" * 10_000), benchmarks, out, Asking(limit=number), Console(quiet=True))
        tracemalloc.start()
        score_files([out], catalogs=[rows])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 700_000  # the replies alone are 2.2 MB more


def test_parse_failures_and_routing_stand_beside_every_score(run: Run, tmp_path: Path) -> None:
    benchmarks, rows = run
    broken = [
        replace(row, errors=[{"kind": "unclosed", "message": "x"}]) if i < 2 else row for i, row in enumerate(rows)
    ]
    scores = score_files([write_log(tmp_path / "log.jsonl", benchmarks, broken)])
    failures = scores["image_qa"]["parse_failure"]
    assert (failures["value"], failures["n"], failures["reasons"]) == (0.25, 8, {"unclosed call": 2})
    assert "routing" not in scores["image_qa"]
    assert scores["routing_f1"]["routing"]["f1"]["value"] == 1.0
    assert scores["image_qa"]["protocol_id"] == "quickstart/image_qa@1"
