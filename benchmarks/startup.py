"""How long ``train.py`` takes to answer ``fit --help``, and to end the first training step of a debug configuration.

Both beside ``python -c "import torch, lightning, transformers"``, in turn within every round; the figures are times
over that one's, medians, smaller is better. One round before is not counted, so that files are cached and compiled.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.arms import ROOT, Outcome, Round, Watch, parser, show, write_result

IMPORTS = "imports"
WANTED = {"help": 1.5, "first_step": 3.0}
"""Times of the imports, at most."""


def seconds_until(command: Sequence[str], said: str | None = None) -> float:
    """How long a command takes to end, or until it prints a line.

    Raises:
        RuntimeError: If it fails, with the end of what it wrote, or never prints the line.
    """
    with tempfile.TemporaryFile("w+") as errors:
        started, found = time.perf_counter(), 0.0
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if said is not None and not found and line.strip() == said:
                    found = time.perf_counter()
        ended = time.perf_counter()
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(f"'{shlex.join(command)}' ended with {process.returncode}:\n{errors.read()[-2000:]}")
    if said is not None and not found:
        raise RuntimeError(f"'{shlex.join(command)}': expected the line '{said}', got none")
    return (ended if said is None else found) - started


def prepare(config: Path, folder: Path) -> Path:
    """A configuration of ``configs/debug`` whose data and run lie below a folder; returns it.

    The commands at its top that make its data (``python -m data ...``) are run.
    """
    from data.__main__ import main as data_main

    text = config.read_text().replace("runs/debug", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    changed = folder / config.name
    changed.write_text(text)
    for command in re.findall(r"^#   python -m data (.*)", text, flags=re.MULTILINE):
        if data_main(shlex.split(command)):
            raise RuntimeError(f"'python -m data {command}' failed")
    return changed


def commands(config: Path, run: Path) -> dict[str, tuple[list[str], str | None]]:
    """Arm -> (command, the line that it is over with)."""
    from benchmarks.steps.first_step import SAID

    train = [sys.executable, "train.py", "fit"]
    quick = [f"--trainer.default_root_dir={run}", "--trainer.max_steps=1", "--trainer.accelerator=cpu"]
    callback = "--trainer.callbacks+=benchmarks.steps.first_step.FirstStep"
    return {
        IMPORTS: ([sys.executable, "-c", "import torch, lightning, transformers"], None),
        "help": ([*train, "--help"], None),
        "first_step": ([*train, "--config", str(config), *quick, callback], SAID),
    }


def main() -> int:
    """Measure, print a table and write the result."""
    command = parser("startup", __doc__)
    command.add_argument(
        "--config", type=Path, default=Path("configs/debug/vectors.yaml"), help="whose first step (%(default)s)"
    )
    command.add_argument("--folder", type=Path, default=Path("runs/benchmarks/startup"), help="(%(default)s)")
    given = command.parse_args()
    console, outcome, folder = Console(), Outcome(), given.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    config, run = prepare(given.config, folder), folder / "run"
    versions = {name: version(name) for name in ("torch", "lightning", "transformers", "jsonargparse")}
    for number in range(given.rounds + 1):
        for name, (arguments, said) in commands(config, run).items():
            console.print(f"round {number}/{given.rounds}: {name}", end="\r")
            shutil.rmtree(run, ignore_errors=True)  # or the fit would resume
            watch = Watch()
            values = {"seconds": seconds_until(arguments, said), "versions": versions}
            if number:
                outcome.rounds.append(Round(name, number - 1, values, watch.foreign()))
    show(outcome, ["seconds"], console)
    usual = outcome.median(IMPORTS, "seconds")
    fractions = {name: outcome.median(name, "seconds") / usual for name in WANTED}
    table = Table("times of the imports", "found", "wanted", "reached")
    for name, wanted in WANTED.items():
        reached = "yes" if fractions[name] <= wanted else "no"
        table.add_row(name, f"{fractions[name]:.2f}", f"≤ {wanted:.2f}", reached)
    console.print(table)
    write_result("startup", outcome, {}, fractions, given.json)
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
