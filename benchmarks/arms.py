"""Arms: processes that do the same work, started in turn, with a watch on what else the machine does."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / "benchmarks" / ".environments"
FOREIGN_LIMIT = 0.1
"""Share of the processors that others may take during a round before the round is marked."""


@dataclass(frozen=True)
class Arm:
    """A command that prints one JSON object with its measurements, in a line of its own, the last of that kind.

    Args:
        name: Of the arm.
        script: Its script below ``benchmarks/``.
        arguments: Of the script.
        environment: Folder of the virtual environment below ``benchmarks/.environments``; None is this one.
    """

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    environment: str | None = None

    @property
    def python(self) -> str:
        """Its interpreter."""
        if self.environment is None:
            return sys.executable
        return str(ENVIRONMENTS / self.environment / "bin" / "python")


@dataclass
class Round:
    """One run of one arm.

    Args:
        arm: Which.
        number: Which round.
        values: What it printed.
        foreign: Share of the processors that this run may use that others took meanwhile.
    """

    arm: str
    number: int
    values: dict[str, Any]
    foreign: float

    def of_kind(self, kind: str) -> Round:
        """The same with the kind of media before its arm's name."""
        return replace(self, arm=f"{kind}/{self.arm}")


@dataclass
class Outcome:
    """All rounds of all arms."""

    rounds: list[Round] = field(default_factory=list)

    def median(self, arm: str, name: str) -> float:
        """Of an arm's rounds."""
        return statistics.median(item.values[name] for item in self.rounds if item.arm == arm)

    def arms(self) -> list[str]:
        """The arms that ran, in order."""
        return list(dict.fromkeys(item.arm for item in self.rounds))


def run_arms(
    arms: Sequence[Arm],
    rounds: int,
    console: Console,
    timeout: float = 1800,
    optional: Collection[str] = (),
    threads: int = 1,
) -> Outcome:
    """Run every arm once per round, in turn, so that a drift of the machine hits all alike; tell each that is through.

    Args:
        arms: The arms.
        rounds: Of all arms.
        console: Where to tell.
        timeout: Seconds that an arm may take.
        optional: Names of arms that are left out, with a word, where they fail.
        threads: Of torch in every arm.

    Raises:
        RuntimeError: If another arm fails; the message ends with what it wrote.
    """
    outcome = Outcome()
    failed: set[str] = set()
    for number in range(rounds):
        for arm in (arm for arm in arms if arm.name not in failed):
            watch = Watch()
            try:
                values = _run(arm, timeout, threads)
            except RuntimeError as error:
                if arm.name not in optional:
                    raise
                console.print(f"left out: {error}", markup=False, highlight=False)
                failed.add(arm.name)
                outcome.rounds = [item for item in outcome.rounds if item.arm != arm.name]
                continue
            outcome.rounds.append(Round(arm.name, number, values, watch.foreign()))
            console.print(f"round {number + 1} of {rounds}: {arm.name}, {watch.seconds:.0f} s", highlight=False)
    return outcome


def _run(arm: Arm, timeout: float, threads: int) -> dict[str, Any]:
    """What an arm measured; ends with whatever it started.

    Raises:
        RuntimeError: If it fails.
    """
    own = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0"}
    variables = {**os.environ, **own}
    command = [arm.python, str(ROOT / "benchmarks" / arm.script), *arm.arguments]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its workers can be ended with it
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException as error:  # Ctrl-C too: nothing of an arm may run on beside the next
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise RuntimeError(f"arm '{arm.name}' took longer than {timeout:.0f} s") from None
            raise
    if process.returncode:
        raise RuntimeError(f"arm '{arm.name}' failed with status {process.returncode}:\n{errors[-2000:]}")
    for line in reversed(output.splitlines()):  # a library may have the last word
        if line.startswith("{"):
            values: dict[str, Any] = json.loads(line)
            return values
    raise RuntimeError(f"arm '{arm.name}': expected a line of JSON, got {output[-200:]!r}\n{errors[-2000:]}")


def available(arms: Sequence[Arm], console: Console) -> list[Arm]:
    """The arms whose environment is there; the others are named."""
    there = [arm for arm in arms if Path(arm.python).exists()]
    for arm in arms:
        if arm not in there:
            console.print(f"left out: {arm.name} (make bench-environments makes '{arm.environment}')")
    return there


def write_result(
    name: str, outcome: Outcome, ratios: Mapping[str, float], fractions: Mapping[str, float], path: Path
) -> None:
    """Write ``ratios`` (ours over the rival's, above 1 is better), rows, machine, versions and foreign load."""
    value = {
        "name": name,
        "ratios": dict(ratios),
        **fractions,
        "rows": [
            {"arm": item.arm, "round": item.number, "foreign": item.foreign, **item.values} for item in outcome.rounds
        ],
        "machine": {"processor": _processor(), "cores": len(processors())},
        "versions": {item.arm: item.values.get("versions", {}) for item in outcome.rounds},
        "foreign_load": max((item.foreign for item in outcome.rounds), default=0.0),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def show(outcome: Outcome, names: Sequence[str], console: Console) -> None:
    """A table of medians, and of the rounds in which others used the machine."""
    table = Table("arm", "rounds", *names, "disturbed")
    for arm in outcome.arms():
        rounds = [item for item in outcome.rounds if item.arm == arm]
        disturbed = sum(item.foreign > FOREIGN_LIMIT for item in rounds)
        table.add_row(arm, str(len(rounds)), *(f"{outcome.median(arm, name):,.1f}" for name in names), str(disturbed))
    console.print(table)


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The command line that benchmarks share."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    made.add_argument("--rounds", type=int, default=5, help="rounds of all arms (%(default)s)")
    made.add_argument("--json", type=Path, default=Path(f"runs/benchmarks/{name}.json"), help="result (%(default)s)")
    return made


class Watch:
    """How much of the processors others take: what they were busy, less what we and our children used.

    Those count that this process may use, so that a run on one core does not see what happens on the others.
    """

    def __init__(self) -> None:
        self.started, self.busy, self.own = time.perf_counter(), _busy(), _ours()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.started

    def foreign(self) -> float:
        """Their share since the start; 0 where the system does not tell."""
        elapsed = time.perf_counter() - self.started
        busy = _busy()
        if busy is None or self.busy is None:
            return 0.0
        others = (busy - self.busy) - (_ours() - self.own)
        return max(0.0, others / (elapsed * len(processors())))


def processors() -> set[int]:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _busy() -> float | None:
    try:
        rows = [row.split() for row in Path("/proc/stat").read_text().splitlines()]
    except OSError:
        return None
    names = {f"cpu{number}" for number in processors()}
    ticks = [[int(value) for value in row[1:]] for row in rows if row and row[0] in names]
    return sum(sum(row[:3]) + sum(row[5:8]) for row in ticks) / os.sysconf("SC_CLK_TCK")


def _ours() -> float:
    return sum(os.times()[:4])


def peak_mib() -> float:
    """The most memory that this process had resident, in MiB.

    ``getrusage`` would begin with what the parent had, since a child is its copy for a moment.
    """
    try:
        rows = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(row.split()[1]) for row in rows if row.startswith("VmHWM:")) / 1024


def _processor() -> str:
    try:
        rows = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        rows = []
    named = [row.partition(":")[2].strip() for row in rows if row.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
