"""A run that stops continues where it stopped, and nothing that was written is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.phases import Phase, PhaseFailedError, Stamps, clock, fingerprints, locked, run_phases

ROOT = Path(__file__).parents[2]
ENVIRONMENT = dict(os.environ)


def writing(run: Path, name: str, needs: tuple[str, ...] = (), files: tuple[Path, ...] = ()) -> Phase:
    """A phase that adds a line to its output each time it runs."""
    command = ("sh", "-c", f"mkdir -p {run}/{name} && echo ran >> {run}/{name}/log")
    return Phase(name, (command,), files, (run / name,), needs)


def lines(run: Path, name: str) -> int:
    return len((run / name / "log").read_text().splitlines())


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    phases = [writing(tmp_path, "a"), writing(tmp_path, "b", ("a",))]
    assert run_phases(phases, tmp_path, ENVIRONMENT) == ["a", "b"]
    assert run_phases(phases, tmp_path, ENVIRONMENT) == []
    assert (lines(tmp_path, "a"), lines(tmp_path, "b")) == (1, 1)
    entries = json.loads((tmp_path / "phases.json").read_text())["phases"]
    assert [(entry["name"], entry["state"]) for entry in entries] == [("a", "done"), ("b", "done")]
    assert all(entry["seconds"] >= 0 and entry["finished"] and entry["command"] for entry in entries)


def test_a_failed_phase_runs_again_on_what_it_wrote(tmp_path: Path) -> None:
    flag = tmp_path / "repaired"
    script = f"echo ran >> {tmp_path}/log; test -e {flag}"
    phases = [writing(tmp_path, "a"), Phase("b", (("sh", "-c", script),), outputs=(tmp_path / "log",), needs=("a",))]
    with pytest.raises(PhaseFailedError, match="'b': status 1"):
        run_phases(phases, tmp_path, ENVIRONMENT)
    assert Stamps(tmp_path).of("b")["state"] == "failed"
    flag.touch()
    assert run_phases(phases, tmp_path, ENVIRONMENT) == ["b"]
    assert (tmp_path / "log").read_text() == "ran\nran\n"


def test_a_changed_file_starts_its_phase_and_the_later_ones_anew(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("a: 1")
    phases = [writing(tmp_path, "a"), writing(tmp_path, "b", ("a",), (config,)), writing(tmp_path, "c", ("b",))]
    phases.append(writing(tmp_path, "d", ("a",)))
    run_phases(phases, tmp_path, ENVIRONMENT)
    config.write_text("a: 2")
    assert run_phases(phases, tmp_path, ENVIRONMENT) == ["b", "c"]
    assert lines(tmp_path, "b") == 1
    assert (tmp_path / "superseded" / "b-1" / "b" / "log").read_text() == "ran\n"
    assert run_phases(phases, tmp_path, ENVIRONMENT, selected=["d"], again=True) == ["d"]
    assert (tmp_path / "superseded" / "d-1" / "d" / "log").is_file()


def test_options_of_the_machine_do_not_change_a_phase(tmp_path: Path) -> None:
    (one,) = fingerprints([Phase("a", (("true",),), options=("--precision", "32-true"))]).values()
    (other,) = fingerprints([Phase("a", (("true",),), options=("--precision", "bf16-mixed"))]).values()
    assert one == other


def test_a_phase_is_refused_before_what_it_needs(tmp_path: Path) -> None:
    phases = [writing(tmp_path, "a"), writing(tmp_path, "b", ("a",))]
    with pytest.raises(ValueError, match=r"'b' needs \['a'\]"):
        run_phases(phases, tmp_path, ENVIRONMENT, selected=["b"])
    with pytest.raises(ValueError, match="before it"):
        fingerprints(phases[1:])
    with pytest.raises(ValueError, match=r"none\.yaml"):
        fingerprints([writing(tmp_path, "a", files=(tmp_path / "none.yaml",))])


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ValueError, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


_CHILD = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / "started").touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.3)
    (folder / "saved").touch()
    sys.exit(1)
"""
_PARENT = """
import os, pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
from training.phases import Phase, PhaseInterruptedError, run_phases
folder = pathlib.Path(sys.argv[1])
phase = Phase("train", ((sys.executable, "-c", sys.argv[2], str(folder)),))
try:
    run_phases([phase], folder, dict(os.environ))
except PhaseInterruptedError as error:
    print("interrupted", error)
    sys.exit(130)
"""


@pytest.mark.parametrize(
    ("sent", "parent"),
    [
        (signal.SIGINT, _PARENT),
        (signal.SIGTERM, _PARENT),
        (signal.SIGTERM, _PARENT.replace("signal.default_int_handler", "signal.SIG_IGN")),  # behind an "&"
    ],
)
def test_an_interrupted_command_may_save_and_the_stamp_says_stopped(
    tmp_path: Path, sent: signal.Signals, parent: str
) -> None:
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", parent, str(tmp_path), _CHILD]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(sent)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted in phase 'train'" in output
    assert (tmp_path / "saved").exists()
    assert Stamps(tmp_path).of("train")["state"] == "stopped"


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0.4, 59.4, 60, 185)] == ["0 s", "59 s", "1 min 00 s", "3 min 05 s"]
