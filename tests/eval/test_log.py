"""The prediction log survives kills and refuses what does not belong to it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval.log import Header, LogError, PredictionLog, read_log
from eval.prediction import Prediction
from tests.eval.conftest import IDENTITY, answer_sample, gold

HEADER = Header(IDENTITY, {"device": "cpu"})
ROWS = [gold(answer_sample("image_qa", i, "zwölf\r\nzwei"), "image_qa") for i in range(4)]


def write(path: Path, rows: list[Prediction]) -> None:
    with PredictionLog(path, HEADER) as log:
        log.append(rows)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    write(tmp_path / "a" / "log.jsonl", ROWS[:2])
    write(tmp_path / "a" / "log.jsonl", ROWS[2:])
    contents = read_log(tmp_path / "a" / "log.jsonl")
    assert [json.dumps(row.to_json()) for row in contents.predictions] == [json.dumps(row.to_json()) for row in ROWS]
    assert contents.header == HEADER
    assert contents.torn == 0


@pytest.mark.parametrize("cut", [1, 17, 300])
def test_a_kill_costs_the_last_line_only(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "log.jsonl"
    write(path, ROWS[:3])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert len(read_log(path).predictions) == 2
    with PredictionLog(path, HEADER) as log:
        assert log.dropped > 0
        assert log.done == {("image_qa", row.key) for row in ROWS[:2]}
        log.append([row for row in ROWS if ("image_qa", row.key) not in log.done])
    assert path.read_bytes().startswith(whole)  # nothing else moved
    assert [row.key for row in read_log(path).predictions] == [row.key for row in ROWS]


def test_a_kill_within_the_header_starts_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, [])
    path.write_bytes(path.read_bytes()[:40])
    write(path, ROWS)
    assert len(read_log(path).predictions) == 4


def test_a_file_that_is_no_log_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"my notes, without a line end")
    with pytest.raises(LogError, match="header"):
        PredictionLog(path, HEADER)
    assert path.read_bytes() == b"my notes, without a line end"


@pytest.mark.parametrize("name", ["checkpoint_sha256", "control", "split"])
def test_another_run_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "log.jsonl"
    write(path, ROWS)
    before = path.read_bytes()
    with pytest.raises(LogError, match=name):
        PredictionLog(path, Header({**IDENTITY, name: "other"}))
    assert path.read_bytes() == before
    with PredictionLog(path, Header(IDENTITY, {"device": "cuda"})) as log:  # what does not matter may differ
        assert len(log.done) == 4


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, ROWS)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], lines[2][:50], *lines[3:]]))
    with pytest.raises(LogError, match="line 3"):
        read_log(path)
    write(tmp_path / "twice.jsonl", ROWS)
    write(tmp_path / "twice.jsonl", [replace(ROWS[0], text="again")])
    with pytest.raises(LogError, match="once"):
        read_log(tmp_path / "twice.jsonl")


@pytest.mark.parametrize(
    ("errors", "reason", "failed"),
    [
        ([], "stop", False),
        ([{"kind": "head", "message": "no"}], "stop", False),
        ([{"kind": "unclosed", "message": "no"}], "stop", True),
        ([{"kind": "unavailable", "message": "no"}], "stop", True),
        ([], "length", True),
    ],
)
def test_what_counts_as_a_parse_failure(errors: list[dict[str, str]], reason: str, failed: bool) -> None:
    row = replace(ROWS[0], errors=errors, finish_reason=reason, results=[{"type": "score", "score": 1.0}])
    assert row.failed is failed
    assert (row.first_result("score") is None) is failed
