"""The quickstart's phases: their command lines are those of the programs, and a run is kept and continued."""

from __future__ import annotations

import argparse
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from data.__main__ import COMMANDS
from data.commands import quickstart as data_command
from data.commands import tokenizer as tokenizer_command
from training import quickstart
from training.phases import Phase, clock
from training.precision import Speed

SPEED = Speed("32-true", {"fp32": 100.0, "bf16": 5.0}, "measured")


@pytest.fixture(autouse=True)
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    for name in ("model", *quickstart.TOWERS, *quickstart.STAGES):
        text = f"data: runs/quickstart/data\ntrainer: {{default_root_dir: runs/quickstart/{name}-folder}}\n"
        (folder / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(quickstart, "CONFIGS", folder)
    monkeypatch.setattr(quickstart, "choose_precision", lambda: SPEED)


def make(run: Path) -> dict[str, Phase]:
    return {phase.name: phase for phase in quickstart.phases(run, seed=3, scale=0.5, precision="32-true")}


def test_every_phase_has_an_estimate_and_comes_after_what_it_needs(tmp_path: Path) -> None:
    phases = make(tmp_path / "run")
    assert set(phases) == set(quickstart.REFERENCE)
    names = list(phases)
    assert all(names.index(need) < names.index(name) for name, phase in phases.items() for need in phase.needs)


def test_a_run_has_its_own_folder_in_its_configurations(tmp_path: Path) -> None:
    run = tmp_path / "other"
    phases = make(run)
    text = (run / "configs" / "stage2_instruction.yaml").read_text()
    assert f"data: {run.as_posix()}/data" in text
    assert phases["stage2_instruction"].outputs == (run / "stage2_instruction-folder",)
    assert str(run / "stage2_instruction-folder" / "checkpoint") in phases["checkpoint"].commands[1]
    (command,) = phases["stage2_instruction"].commands
    assert command[2] == "fit"
    assert [command[i + 1] for i, word in enumerate(command) if word == "--config"] == [
        str(run / "configs" / name) for name in ("model.yaml", "stage2_instruction.yaml")
    ]
    assert phases["stage0_vision"].commands[0].count("--config") == 1
    assert phases["stage0_vision"].options == ("--trainer.precision", "32-true")


def test_the_evaluation_speaks_the_language_of_its_program(tmp_path: Path) -> None:
    from eval.commands import predict, report, score
    from eval.controls import PREDICTED_CONTROLS

    assert quickstart.CONTROLS == PREDICTED_CONTROLS
    phases = make(tmp_path / "run")
    commands = [c for name in ("evaluation", "controls", "score", "report") for c in phases[name].commands]
    modules = {"predict": predict, "score": score, "report": report}
    parsed = []
    for command in commands:
        name, *rest = command[command.index("eval") + 1 :]
        parser = argparse.ArgumentParser()
        modules[name].configure(parser)
        parsed.append(parser.parse_args(rest))
    assert [item.control for item in parsed[:6]] == [None, None, *PREDICTED_CONTROLS]
    assert [item.constrained for item in parsed[:6]] == [False, True, False, False, False, False]
    assert parsed[6].files == [item.out for item in parsed[:6]]
    assert parsed[7].run_dir == tmp_path / "run"


def test_the_data_commands_are_those_of_their_program(tmp_path: Path) -> None:
    phases = make(tmp_path / "run")
    for name, module in (("data", data_command), ("tokenizer", tokenizer_command)):
        (command,) = phases[name].commands
        assert command[1:3] == ("-m", "data")
        assert command[3] in COMMANDS
        parser = argparse.ArgumentParser()
        module.configure(parser)
        assert parser.parse_args(command[4:]).out


def test_estimates_go_with_the_measured_speed() -> None:
    reference = quickstart.REFERENCE["stage2_instruction"].seconds
    assert (
        quickstart.estimate("stage2_instruction", SPEED, 1.0)
        == reference * quickstart.REFERENCE_GFLOPS[SPEED.precision] / 100
    )
    assert quickstart.estimate("data", SPEED, 0.5) == quickstart.REFERENCE["data"].seconds / 2
    assert quickstart.estimate("stage2_instruction", Speed("bf16-mixed", {}, "a GPU"), 1.0) is None


def test_the_environment_of_the_commands_keeps_what_is_set() -> None:
    environment = quickstart.child_environment({"OMP_NUM_THREADS": "7", "PYTHONPATH": "mine", "HOME": "h"})
    assert environment["OMP_NUM_THREADS"] == "7"
    assert environment["HOME"] == "h"
    assert environment["PYTHONPATH"].split(":") == [str(quickstart.ROOT), "mine"]


def test_a_run_is_told_kept_and_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, flag = tmp_path / "run", tmp_path / "flag"
    planned = [
        Phase("data", (("sh", "-c", f"echo ran >> {tmp_path}/data"),)),
        Phase("tokenizer", (("test", "-e", str(flag)),), needs=("data",)),
    ]
    monkeypatch.setattr(quickstart, "phases", lambda *_: planned)
    assert quickstart.main(["--run", str(run)]) == 1
    captured = capsys.readouterr()
    assert f"Continue with: python -m training.quickstart --run {run}" in captured.err
    assert "precision: measured" in captured.out
    expected = sum(quickstart.estimate(name, SPEED, 1.0) or 0.0 for name in ("data", "tokenizer"))
    assert re.search(rf"^left +{clock(expected)}$", captured.out, flags=re.MULTILINE)
    flag.touch()
    assert quickstart.main(["--run", str(run)]) == 0
    assert "done in" in capsys.readouterr().out
    assert (tmp_path / "data").read_text() == "ran\n"
    assert quickstart.main(["--run", str(run), "--only", "data", "--again"]) == 0
    assert (tmp_path / "data").read_text() == "ran\nran\n"
    monkeypatch.setattr(quickstart, "choose_precision", lambda: Speed("bf16-mixed", {"fp32": 1, "bf16": 9}, "now"))
    assert quickstart.main(["--run", str(run)]) == 0
    assert "this run keeps 32-true" in capsys.readouterr().out
    assert json.loads((run / "phases.json").read_text())["settings"]["precision"] == "32-true"


def test_a_phase_out_of_order_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quickstart.main(["--run", str(tmp_path / "run"), "--only", "score"]) == 2
    assert "needs ['evaluation', 'controls']" in capsys.readouterr().err


def test_two_processes_share_the_tokens_of_a_step(tmp_path: Path) -> None:
    for name in quickstart.SPLIT:
        config = quickstart.CONFIGS / f"{name}.yaml"
        config.write_text(
            config.read_text().replace("data: runs/", "data: {init_args: {max_tokens: 1536}}\nfrom: runs/")
        )
    alone = make(tmp_path / "alone")
    planned = quickstart.phases(tmp_path / "run", seed=3, scale=0.5, precision="32-true", processes=2)
    together = {phase.name: phase for phase in planned}
    for name in quickstart.SPLIT:
        (command,) = together[name].commands
        given = dict(pairwise(command))
        assert given["--trainer.devices"] == given["--data.init_args.packs_per_step"] == "2"
        assert given["--data.init_args.max_tokens"] == "768"
        assert together[name].environment["OMP_NUM_THREADS"] == str(max(1, quickstart.num_cores() // 2))
        assert "--trainer.devices" not in alone[name].commands[0] and not alone[name].environment
    assert "--trainer.devices" not in together["stage0_language"].commands[0]
