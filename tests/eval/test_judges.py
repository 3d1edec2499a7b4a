"""Judges: none means n/a, failures are named and asked again, verdicts are paid for once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from eval.__main__ import main
from eval.askers.scripted import ConstantAsker, GoldAsker
from eval.benchmarks.lookup import find_benchmarks
from eval.judges.endpoint import EndpointJudge
from eval.judges.judge import Judge, Remembered, RuleJudge, Template, Verdict
from eval.score import score_files
from tests.eval.test_askers import ask
from tests.eval.test_catalog import QUESTIONS, ROW, write_questions

JUDGED = {"class_path": "eval.benchmarks.judged.JudgedGrade", "init_args": {"template": "{answer}|{reply}|{kind}"}}


class Scripted(Judge):
    """Grades 1, fails where the reply says so, and notes what it was asked."""

    identity = "scripted"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def verdicts(self, template: Template, payloads: Sequence[Mapping[str, str]]) -> Iterator[Verdict]:
        for payload in payloads:
            self.asked.append(template.fill(payload))
            yield Verdict(None, "timed out") if "fail" in payload["reply"] else Verdict("I give it 1.0")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write_questions(tmp_path, QUESTIONS)
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump({"three": {**ROW, "metric": JUDGED}}))
    ask(GoldAsker(), find_benchmarks(tmp_path, "test", ["three"], [tmp_path / "rows.yaml"]), tmp_path / "log")
    return tmp_path / "log"


def score(log: Path, judge: Judge | None) -> dict[str, Any]:
    return score_files([log], catalogs=[log.parent / "rows.yaml"], judge=judge)["three/grade"]


def test_without_a_judge_there_is_no_score(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = score(log, None)
    assert (entry["value"], entry["na"], entry["n"], entry["judge"]) == (None, "no judge", 3, None)
    assert entry["controls"]["constant"] is None and entry["controls_na"]["constant"] == "no judge"
    assert main(["score", str(log), "--catalog", str(log.parent / "rows.yaml"), "--out", str(log / "scores.json")]) == 0
    assert "three/grade: n/a: no judge" in capsys.readouterr().out
    assert json.loads((log / "scores.json").read_text())["three/grade"]["value"] is None


def test_a_rule_judges(log: Path, tmp_path: Path) -> None:
    entry = score(log, RuleJudge("exact"))
    assert (entry["value"], entry["n"], entry["judge"]) == (1.0, 3, "rule:exact@1")
    assert "rule:exact@1" in entry["protocol"]
    benchmarks = find_benchmarks(tmp_path, "test", ["three"], [tmp_path / "rows.yaml"])
    ask(ConstantAsker("reddish"), benchmarks, tmp_path / "other")
    assert score(tmp_path / "other", RuleJudge("exact"))["value"] == 0.0
    assert score(tmp_path / "other", RuleJudge("contains"))["value"] == 1.0
    with pytest.raises(ValueError, match="expected one of"):
        RuleJudge("vibes")


def test_missing_verdicts_make_no_score_and_are_asked_for_again(tmp_path: Path, log: Path) -> None:
    benchmarks = find_benchmarks(tmp_path, "test", ["three"], [tmp_path / "rows.yaml"])
    ask(ConstantAsker("fail"), benchmarks, tmp_path / "other")
    judge = Scripted()
    memory = tmp_path / "verdicts"
    entry = score(tmp_path / "other", Remembered(judge, memory))
    assert entry["value"] is None and entry["na"].startswith("3 verdicts are missing (3 x timed out)")
    assert len(judge.asked) == 2 + 2  # two of the three ask alike, of the model and of the best constant, "red"
    assert score(log, Remembered(judge, memory))["value"] == 1.0
    assert len(judge.asked) == 4  # what was said of "red" is known


def test_verdicts_are_remembered_by_judge_template_and_payload(tmp_path: Path) -> None:
    judge, memory = Scripted(), tmp_path / "verdicts"
    payloads = [{"reply": "a"}, {"reply": "b"}, {"reply": "a"}, {"reply": "fail"}]
    first = list(Remembered(judge, memory).verdicts(Template("{reply}?"), payloads))
    assert [verdict.text for verdict in first] == ["I give it 1.0"] * 3 + [None]
    assert judge.asked == ["a?", "b?", "fail?"]
    memory.write_bytes(memory.read_bytes() + b'{"key": "torn')
    again = Remembered(judge, memory)
    list(again.verdicts(Template("{reply}?"), payloads))
    assert judge.asked[3:] == ["fail?"]  # a failure is no verdict
    list(again.verdicts(Template("{reply}!"), payloads[:1]))
    assert judge.asked[4:] == ["a!"]
    list(
        Remembered(judge, memory).verdicts(Template("{reply}!"), payloads[:1])
    )  # what came after the torn line is there
    assert len(judge.asked) == 5
    memory.write_text('{"verdict": 1}\n')
    with pytest.raises(ValueError, match="line 1: expected key and verdict"):
        Remembered(judge, memory)
    with pytest.raises(ValueError, match=r"expected the fields \['x'\]"):
        Template("{x}").fill({"reply": "a"})


class Handler(BaseHTTPRequestHandler):
    seen: ClassVar[list[dict[str, Any]]] = []
    keys: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        self.keys.append(self.headers["Authorization"])
        prompt = body["messages"][0]["content"]
        status, words = 200, json.dumps({"choices": [{"message": {"content": f"graded {prompt}: 0.5"}}]})
        if prompt == "slow":
            time.sleep(0.5)
        if prompt == "busy" and sum(item["messages"][0]["content"] == "busy" for item in self.seen) == 1:
            status = 503
        if prompt == "forbidden":
            status = 403
        if prompt == "odd":
            words = '{"error": "no idea"}'
        self.send_response(status)
        self.end_headers()
        try:
            self.wfile.write(words.encode())
        except BrokenPipeError:
            pass

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    Handler.seen, Handler.keys = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1/"
    server.shutdown()
    server.server_close()


def test_an_endpoint_that_is_slow_busy_or_odd(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "secret")
    judge = EndpointJudge(endpoint, "grader", key_variable="A_KEY", timeout=0.1, retries=1, wait=0.0, parallel=2)
    prompts = ["fine", "slow", "busy", "forbidden", "odd"]
    found = list(judge.verdicts(Template("{reply}"), [{"reply": prompt} for prompt in prompts]))
    assert found[0] == Verdict("graded fine: 0.5")
    assert found[1] == Verdict(None, "timed out after 0.1 s")
    assert found[2] == Verdict("graded busy: 0.5")
    assert found[3] == Verdict(None, "HTTP 403 Forbidden")
    assert found[4].error.startswith("expected choices[0]")
    assert set(Handler.keys) == {"Bearer secret"}
    assert Handler.seen[0]["temperature"] == 0 and Handler.seen[0]["model"] == "grader"
    assert judge.identity == "grader@temperature-0"
    with pytest.raises(ValueError, match="http or https"):
        EndpointJudge("file:///etc/passwd", "x")


def test_a_refused_connection_is_named() -> None:
    (verdict,) = EndpointJudge("http://127.0.0.1:9", "x", retries=0, timeout=1).verdicts(
        Template("{reply}"), [{"reply": "a"}]
    )
    assert verdict.text is None and "refused" in verdict.error


def test_a_judge_that_times_out_makes_no_score_and_is_named(endpoint: str, tmp_path: Path, log: Path) -> None:
    row = {**ROW, "metric": {**JUDGED, "init_args": {"template": "{reply}"}}}
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump({"three": row}))
    benchmarks = find_benchmarks(tmp_path, "test", ["three"], [tmp_path / "rows.yaml"])
    ask(ConstantAsker("slow"), benchmarks, tmp_path / "other")
    judge = EndpointJudge(endpoint, "grader", timeout=0.1, retries=0, wait=0.0)
    entry = score(tmp_path / "other", Remembered(judge, tmp_path / "verdicts"))
    assert entry["value"] is None and entry["n"] == 3
    assert entry["na"] == "3 verdicts are missing (3 x timed out after 0.1 s); score again to ask for them"
    patient = EndpointJudge(endpoint, "grader", timeout=5.0, retries=0)
    assert score(tmp_path / "other", Remembered(patient, tmp_path / "verdicts"))["value"] == 0.5


def test_the_command_line_chooses_the_judge(endpoint: str, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["score", str(log), "--catalog", str(log.parent / "rows.yaml"), "--judge", endpoint]
    assert main(command) == 2
    assert "--judge-model" in capsys.readouterr().err
    assert main([*command, "--judge-model", "grader"]) == 0
    assert "0.500" in capsys.readouterr().out
    asked = len(Handler.seen)
    assert 0 < asked <= 3 and log.with_name("log.verdicts").exists()
    assert main([*command, "--judge-model", "grader"]) == 0
    assert len(Handler.seen) == asked
