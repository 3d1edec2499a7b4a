"""What a demonstration is: arms, seeds, a measurement, and the condition under which the claim holds."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).parents[1]
Metrics = dict[str, float]
Measure = Callable[[str, int, Path], Metrics]
"""(arm, seed, folder for its files) -> what came out."""


@dataclass(frozen=True)
class Claim:
    """A condition on the results.

    Args:
        words: What is claimed.
        holds: Whether it holds, given the mean over seeds: ``mean(arm, metric)``.
    """

    words: str
    holds: Callable[[Callable[[str, str], float]], bool]


@dataclass(frozen=True)
class Demonstration:
    """A paper's claim at CPU size.

    Args:
        paper: Number of the paper in docs/methods.md.
        address: Its address.
        shows: What is trained and compared, in a sentence or two.
        arms: Arm -> what distinguishes it; the controls are arms too.
        measure: Trains and measures one arm with one seed.
        claims: All of them must hold.
        controls: Control -> (arm, metric) that holds its value.
        controls_na: Control -> why it has no meaning here.
        seeds: Default number of seeds.
    """

    paper: int
    address: str
    shows: str
    arms: Mapping[str, str]
    measure: Measure
    claims: Sequence[Claim]
    controls: Mapping[str, tuple[str, str]]
    controls_na: Mapping[str, str] = field(default_factory=dict)
    seeds: int = 3


@dataclass
class Results:
    """Measured so far; written after every arm and seed, and taken up again by a later run of the same code.

    Args:
        name: The demonstration.
        path: Where it is written.
        code: Hash of the demonstration's code; results of other code are not continued.
    """

    name: str
    path: Path
    code: str
    runs: dict[str, dict[str, Metrics]] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def resume(cls, name: str, source: Path, path: Path) -> Results:
        """Those in the file, if they come from the present code; otherwise none.

        Args:
            name: The demonstration.
            source: The file that defines it.
            path: Where results are.
        """
        code = code_hash(source)
        try:
            value = json.loads(path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return cls(name, path, code)
        if value.get("code") != code:
            return cls(name, path, code)
        return cls(name, path, code, value["runs"], value["wall_seconds"])

    def missing(self, arms: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, int]]:
        """Arms and seeds still to be measured, seed by seed."""
        return ((arm, seed) for seed in seeds for arm in arms if str(seed) not in self.runs.get(arm, {}))

    def add(self, arm: str, seed: int, metrics: Metrics, seconds: float) -> None:
        """Take a measurement."""
        self.runs.setdefault(arm, {})[str(seed)] = metrics
        self.seconds += seconds

    def mean(self, arm: str, metric: str) -> float:
        """Over seeds."""
        return fmean(metrics[metric] for metrics in self.runs[arm].values())

    def write(self, demonstration: Demonstration) -> dict[str, Any]:
        """Write everything; returns it."""
        complete = all(arm in self.runs for arm in demonstration.arms)
        claims = {claim.words: claim.holds(self.mean) for claim in demonstration.claims} if complete else {}
        value = {
            "name": self.name,
            "paper": demonstration.paper,
            "address": demonstration.address,
            "shows": demonstration.shows,
            "holds": bool(claims) and all(claims.values()),
            "claims": claims,
            "seeds": sorted({int(seed) for runs in self.runs.values() for seed in runs}),
            "arms": dict(demonstration.arms),
            "runs": self.runs,
            "controls": self._controls(demonstration) if complete else {},
            "controls_na": dict(demonstration.controls_na),
            "wall_seconds": round(self.seconds, 1),
            "code": self.code,
            "git_revision": _revision(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": {name: version(name) for name in ("torch", "transformers", "lightning")},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps(value, indent=1) + "\n")
        partial.replace(self.path)
        return value

    def _controls(self, demonstration: Demonstration) -> dict[str, float | None]:
        measured = {name: self.mean(*place) for name, place in demonstration.controls.items()}
        return {**measured, **dict.fromkeys(demonstration.controls_na)}


def code_hash(source: Path) -> str:
    """Of the demonstration's own file."""
    return hashlib.sha256(source.read_bytes()).hexdigest()[:16]


def timed(measure: Measure, arm: str, seed: int, folder: Path) -> tuple[Metrics, float]:
    """The measurement and its seconds."""
    started = time.perf_counter()
    metrics = measure(arm, seed, folder)
    return metrics, time.perf_counter() - started


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else "unknown"
