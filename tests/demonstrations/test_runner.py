"""The runner of demonstrations: what it writes, what it takes up again, and that every demonstration loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demonstrations import __main__ as runner
from demonstrations import demonstration as module
from demonstrations.demonstration import Claim, Demonstration, Metrics


@pytest.mark.parametrize("name", runner.NAMES)
def test_every_demonstration_loads_and_its_command_parses(name: str) -> None:
    demonstration = runner.load(name)
    assert runner._parser().parse_args([name]).names == [name]
    assert demonstration.claims and len(demonstration.arms) >= 2
    assert demonstration.address.startswith("https://arxiv.org/abs/")
    assert {arm for arm, _ in demonstration.controls.values()} <= set(demonstration.arms)


def _fake(measured: list[tuple[str, int]], gain: float) -> Demonstration:
    def measure(arm: str, seed: int, folder: Path) -> Metrics:
        measured.append((arm, seed))
        return {"accuracy": 0.2 + (gain if arm == "ours" else 0.0) + 0.01 * seed}

    return Demonstration(
        paper=1,
        address="https://arxiv.org/abs/0000.00000",
        shows="nothing",
        arms={"baseline": "as it was", "ours": "as it is"},
        measure=measure,
        claims=[
            Claim("ours is better by .1", lambda mean: mean("ours", "accuracy") > mean("baseline", "accuracy") + 0.1)
        ],
        controls={"constant": ("baseline", "accuracy")},
        controls_na={"blind": "nothing to see"},
        seeds=2,
    )


def test_results_are_written_resumed_and_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, int]] = []
    monkeypatch.setattr(runner, "load", lambda name: _fake(measured, 0.5))
    monkeypatch.setattr(runner, "HERE", tmp_path / "here")
    monkeypatch.setattr(module, "code_hash", lambda source: "one")
    name = runner.NAMES[0]
    kept = tmp_path / "here" / runner.PLACES[name]
    kept.mkdir(parents=True)
    command = [name, "--out", str(tmp_path / "out")]
    assert runner.main([*command, "--arms", "ours"]) == 1  # no claim can hold without the baseline
    assert measured == [("ours", 0), ("ours", 1)]
    assert runner.main([*command, "--accept"]) == 0
    assert measured[2:] == [("baseline", 0), ("baseline", 1)]
    value = json.loads((kept / f"{name}.json").read_text())
    assert (
        value["holds"] and value["seeds"] == [0, 1] and value["runs"]["ours"]["1"] == {"accuracy": pytest.approx(0.71)}
    )
    assert value["controls"] == {"constant": pytest.approx(0.205), "blind": None} and value["git_revision"]
    assert runner.main(command) == 0 and len(measured) == 4
    monkeypatch.setattr(module, "code_hash", lambda source: "two")
    assert runner.main(command) == 0 and len(measured) == 8  # other code: from the start


def test_what_does_not_hold_is_kept_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "load", lambda name: _fake([], 0.05))
    monkeypatch.setattr(runner, "HERE", tmp_path)
    monkeypatch.setattr(module, "code_hash", lambda source: "one")
    name = runner.NAMES[0]
    kept = tmp_path / runner.PLACES[name] / f"{name}.json"
    kept.parent.mkdir()
    command = [name, "--out", str(tmp_path / "out"), "--accept"]
    assert runner.main([*command, "--arms", "ours"]) == 1 and not kept.exists()  # half a result says nothing
    assert runner.main(command) == 1
    assert json.loads(kept.read_text())["holds"] is False
