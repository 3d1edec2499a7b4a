"""The prediction log survives kills and refuses what does not belong to it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from eval.claims import Claims, Worker
from eval.log import Header, LogError, PredictionLog, Skipped, open_log, read_log
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
        write(path, ROWS)
    assert path.read_bytes() == b"my notes, without a line end"


@pytest.mark.parametrize("name", ["checkpoint_sha256", "control", "split"])
def test_another_run_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "log.jsonl"
    write(path, ROWS)
    before = path.read_bytes()
    with pytest.raises(LogError, match=name), PredictionLog(path, Header({**IDENTITY, name: "other"})):
        pass
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
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


def test_rows_are_read_in_the_benchmarks_order_and_held_by_nobody(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, [replace(row, index=index) for row, index in zip(ROWS, (3, 1, 0, 2), strict=True)])
    rows = read_log(path).rows("image_qa")
    assert [row.index for row in rows] == [row.index for row in rows] == [0, 1, 2, 3]
    assert (len(rows), rows[3].key) == (4, ROWS[0].key)
    assert rows[0] is not rows[0]


def test_workers_share_a_folder_and_a_sample_counts_once(tmp_path: Path) -> None:
    out = tmp_path / "log"
    with open_log(out, HEADER) as first, open_log(out, HEADER) as second:
        assert [worker.pid for worker in first.claims.others()] == [second.claims.worker.pid]
        assert first.claims.take("image_qa-0") and not second.claims.take("image_qa-0")
        first.append(ROWS[:3])
        second.append([replace(ROWS[2], text="a second opinion"), ROWS[3], Skipped("image_qa", "lost", "no picture")])
        first.claims.finish("image_qa-0")
        assert second.claims.is_done("image_qa-0")
    log = read_log(out)
    assert sorted(row.key for row in log.predictions) == [row.key for row in ROWS]
    assert log.duplicates == 1
    assert log.skipped == [Skipped("image_qa", "lost", "no picture")]
    with open_log(out, HEADER) as third:
        assert third.done == {("image_qa", row.key) for row in ROWS}
        third.append([replace(ROWS[0], key="lost")])
    assert read_log(out).skipped == []  # it was answered later
    with pytest.raises(LogError, match=r"run\.json.*control"), open_log(out, Header({**IDENTITY, "control": "blind"})):
        pass
    assert not list(out.rglob("*.worker")) and not list(out.rglob("*.claim"))


def test_a_torn_line_in_one_file_of_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "log"
    for own in (ROWS[:2], ROWS[2:]):
        with open_log(out, HEADER) as log:
            log.append(own)
    torn = sorted(out.glob("*.jsonl"))[0]
    lost = torn.read_bytes()[:-30]
    torn.write_bytes(lost)
    (out / "killed.jsonl").write_bytes(b'{"type":"header","form')  # killed while it wrote its header
    log = read_log(out)
    assert len(log.predictions) == 3 and log.torn > 0
    with open_log(out, HEADER) as again:
        assert len(again.done) == 3
        assert torn.read_bytes() == lost  # another's file is never touched


def test_one_file_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with open_log(path, HEADER) as first:
        first.append(ROWS[:1])
        with pytest.raises(LogError, match=f"being written by process {first.claims.worker.pid}.*folder"):
            write(path, ROWS[1:])
        first.append(ROWS[1:2])
    assert len(read_log(path).predictions) == 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, ROWS[:2])
    size = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_log(path, HEADER) as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))
        try:
            with pytest.raises(LogError, match="cannot be written: File too large; what it holds so far is whole"):
                log.append(ROWS[2:])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.stat().st_size == size
        log.append(ROWS[2:])  # there is room again
    assert [row.key for row in read_log(path).predictions] == [row.key for row in ROWS]


def test_claims_of_the_dead_are_taken_over(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = int(Path(f"/proc/{gone.pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    here = Worker.this()
    killed = Claims(tmp_path, Worker("killed", here.host, gone.pid, start))
    killed._beat(create=True)
    assert killed.take("a") and killed.take("b")
    with Claims(tmp_path) as alive:
        assert not alive.take("a")
        gone.kill()
        gone.wait()
        assert alive.take("a")
        with Claims(tmp_path) as other:
            assert not other.take("a") and other.take("b")
        assert alive.take("b")  # let go when its holder left


def test_a_silent_machine_loses_its_claims_after_the_lease(tmp_path: Path) -> None:
    far = Claims(tmp_path, Worker("far", "another-machine", 1, 1))
    far._beat(create=True)
    assert far.take("a")
    with Claims(tmp_path, lease=30) as near:
        assert not near.take("a")
        os.utime(tmp_path / "far.worker", (0, 0))
        assert near.take("a")
        (tmp_path / "torn.claim").write_text('{"na')
        assert not near.take("torn")  # it may be in the middle of being made
        os.utime(tmp_path / "torn.claim", (0, 0))
        assert near.take("torn")


def test_one_of_many_gets_a_claim(tmp_path: Path) -> None:
    workers = [Claims(tmp_path, Worker(f"w{i}", "elsewhere", i, 1)) for i in range(8)]
    for worker in workers:
        worker._beat(create=True)
    with ThreadPoolExecutor(8) as pool:
        for piece in range(20):
            assert sum(pool.map(lambda worker, piece=piece: worker.take(f"p{piece}"), workers)) == 1
