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
from training.phases.screen import last_line, steps

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
    assert [clock(seconds) for seconds in (0.4, 59.4, 60, 185, 3900)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "3 min 05 s",
        "1 h 05 min",
    ]


def meeting(folder: Path, name: str, other: str, seconds: float = 20.0) -> Phase:
    """A phase that ends well only if the other one is at work at the same time."""
    waits = f"until [ -e {folder}/{other} ]; do sleep 0.05; n=$((n+1)); [ $n -lt {seconds * 20:.0f} ] || exit 3; done"
    script = f"touch {folder}/{name}; n=0; {waits}; echo {name} met {other} with $THREADS"
    return Phase(name, (("sh", "-ec", script),), shares=True)


def test_phases_that_share_run_beside_each_other_and_the_rest_alone(tmp_path: Path) -> None:
    phases = [meeting(tmp_path, "a", "b"), meeting(tmp_path, "b", "a"), writing(tmp_path, "c", ("a", "b"))]
    environment = {**ENVIRONMENT, "THREADS": "2"}
    ran = run_phases(phases, tmp_path, environment, sharing={"THREADS": "1"}, lanes=2)
    assert ran == ["a", "b", "c"]
    assert (tmp_path / "logs" / "a.log").read_text() == "a met b with 1\n"
    assert not (tmp_path / "logs" / "c.log").exists()
    entries = {entry["name"]: entry for entry in json.loads((tmp_path / "phases.json").read_text())["phases"]}
    ends = {name: entry["intervals"][-1][1] for name, entry in entries.items()}
    assert entries["c"]["intervals"][0][0] >= max(ends["a"], ends["b"]) - 0.2
    with pytest.raises(PhaseFailedError, match="'a': status 3"):  # one after the other they do not meet
        (tmp_path / "b").unlink()
        run_phases([meeting(tmp_path, "a", "b", 0.1)], tmp_path, environment)


def test_a_phase_that_does_not_share_waits_for_those_that_do(tmp_path: Path) -> None:
    alone = Phase("alone", (("sh", "-c", f"ls {tmp_path} > {tmp_path}/seen"),))
    slow = Phase("slow", (("sh", "-c", f"sleep 0.4; touch {tmp_path}/slow-done"),), shares=True)
    assert run_phases([slow, alone], tmp_path, ENVIRONMENT, lanes=2) == ["slow", "alone"]
    assert "slow-done" in (tmp_path / "seen").read_text()


def test_a_failure_stops_what_runs_beside_it_and_shows_its_log(tmp_path: Path) -> None:
    save = "trap 'touch saved; exit 1' INT; touch waiting; while :; do sleep 0.05; done"
    fail = f"until [ -e {tmp_path}/waiting ]; do sleep 0.05; done; echo the reason; exit 4"
    phases = [
        Phase("saves", (("sh", "-c", f"cd {tmp_path}; {save}"),), shares=True),
        Phase("fails", (("sh", "-c", fail),), shares=True),
    ]
    with pytest.raises(PhaseFailedError, match=r"(?s)'fails': status 4.*fails\.log.*the reason"):
        run_phases(phases, tmp_path, ENVIRONMENT, lanes=2)
    assert (tmp_path / "saved").exists()
    stamps = Stamps(tmp_path)
    assert (stamps.of("saves")["state"], stamps.of("fails")["state"]) == ("stopped", "failed")


def test_the_screen_reads_steps_of_the_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_text("begin\n" + "x" * 5000 + "\nstep 1,200/1,500  loss 0.4\n\n")
    assert last_line(log) == "step 1,200/1,500  loss 0.4"
    assert steps(last_line(log)) == (1200, 1500) and steps("begin") is None
