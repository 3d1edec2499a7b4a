"""``python -m training.quickstart``: data, towers, alignment, instruction, evaluation, controls and the page.

Every phase is a command line that can be run by hand; it is printed before it starts. Run it again to continue.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from training.phases import (
    Phase,
    PhaseFailedError,
    PhaseInterruptedError,
    Stamps,
    clock,
    fingerprints,
    locked,
    run_phases,
)
from training.precision import Speed, choose_precision

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "quickstart"
DEFAULT_RUN = Path("runs/quickstart")
TOWERS = ("stage0_vision", "stage0_speech", "stage0_graph")
CONTROLS = ("blind", "shuffled", "zeroed", "random_weights")
STAGES = ("stage0_language", "stage1_alignment", "stage2_instruction")
SPLIT = ("stage1_alignment", "stage2_instruction")
"""What several processes can train together."""


@dataclass(frozen=True)
class Reference:
    """How long a phase takes on the reference machines.

    Args:
        seconds: In fp32.
        bf16_seconds: In bf16; None for a phase whose time does not go with the speed of matrix products.
    """

    seconds: float
    bf16_seconds: float | None = None


LANES = 2
"""Of phases that share a CPU. Small steps gain little from a second thread: on one a phase has two thirds of the speed
that it has on two, so two phases beside each other end sooner than one after the other."""

# In bf16 on two cores of a Xeon with AMX, one run as one command with nothing beside it. In fp32 on two cores of an AMD
# EPYC without AVX512, from runs with other numbers of steps, in proportion, and of phases that share from both cores to
# one. The speeds are those of training/precision.py; steps of this size gain from bf16 less than these do.
REFERENCE_GFLOPS: Mapping[str, float] = {"32-true": 130.0, "bf16-mixed": 663.0}
REFERENCE: Mapping[str, Reference] = {
    "data": Reference(240),
    "tokenizer": Reference(20),
    "stage0_speech": Reference(1170, 680),
    "stage0_language": Reference(1150, 415),
    "stage0_vision": Reference(510, 205),
    "stage0_graph": Reference(120, 62),
    "stage1_alignment": Reference(810, 485),
    "stage2_instruction": Reference(1970, 1135),
    "checkpoint": Reference(1),
    "evaluation": Reference(400, 300),
    "controls": Reference(370, 240),
    "score": Reference(20),
    "report": Reference(15),
}


def phases(
    run: Path, seed: int, scale: float, precision: str, processes: int = 1, python: str = sys.executable
) -> list[Phase]:
    """The phases of a run, in order; writes the run's copies of the configurations.

    Args:
        run: The run folder; it replaces ``runs/quickstart`` in the configurations.
        seed: Of the data and of the training.
        scale: Size of the data, 1 is the quickstart's.
        precision: Of the trainer.
        processes: How many train the last two stages together, each on its part of a step's tokens and of the cores.
        python: The interpreter.
    """
    configs = {name: _own_config(name, run) for name in ("model", *TOWERS, *STAGES)}
    folders = {name: Path(_settings(configs[name])["trainer"]["default_root_dir"]) for name in (*TOWERS, *STAGES)}
    data, checkpoint, predictions = run / "data", run / "checkpoint", run / "predictions"
    module = (python, "-m")

    def fit(name: str, needs: tuple[str, ...], with_model: bool) -> Phase:
        files = (configs["model"], configs[name]) if with_model else (configs[name],)
        chosen = [argument for file in files for argument in ("--config", str(file))]
        command = (python, str(ROOT / "train.py"), "fit", *chosen, "--seed_everything", str(seed))
        options = ("--trainer.precision", precision)
        environment = {}
        if processes > 1 and name in SPLIT:
            command += _together(processes, _settings(configs[name])["data"]["init_args"]["max_tokens"])
            environment["OMP_NUM_THREADS"] = str(max(1, num_cores() // processes))
        shares = name.startswith("stage0")
        return Phase(name, (command,), files, (folders[name],), needs, options, shares, environment)

    shared = ("--checkpoint", str(checkpoint), "--data", str(data), "--split", "test")
    asking = ("--batch-size", "64", "--max-new-tokens", "64")  # the longest reference has some 40 tokens
    predict = (*module, "eval", "predict", *shared, *asking, "--benchmark")
    logs = {name: predictions / f"{name}.jsonl" for name in ("model", "constrained", *CONTROLS)}
    tokenizer = ("--data", str(data / "train"), "--config", str(configs["model"]), "--out", str(run / "tokenizer"))
    return [
        Phase(
            "data",
            ((*module, "data", "quickstart", "--out", str(data), "--seed", str(seed), "--scale", str(scale)),),
            files=tuple(sorted((ROOT / "data" / "quickstart").glob("*.py"))),  # other records, other models
            outputs=(data,),
        ),
        Phase(
            "tokenizer",
            ((*module, "data", "tokenizer", *tokenizer),),
            files=(configs["model"],),
            outputs=(run / "tokenizer",),
            needs=("data",),
            shares=True,
        ),
        fit("stage0_speech", ("data",), with_model=False),  # the longest first
        fit("stage0_language", ("tokenizer",), with_model=True),
        *(fit(name, ("data",), with_model=False) for name in TOWERS if name != "stage0_speech"),
        fit("stage1_alignment", ("stage0_language", *TOWERS), with_model=True),
        fit("stage2_instruction", ("stage1_alignment",), with_model=True),
        Phase(
            "checkpoint",
            (
                ("rm", "-rf", str(checkpoint)),
                ("cp", "-R", str(folders["stage2_instruction"] / "checkpoint"), str(checkpoint)),
            ),
            outputs=(checkpoint,),
            needs=("stage2_instruction",),
        ),
        Phase(
            "evaluation",
            (
                (*predict, "all", "--out", str(logs["model"])),
                (*predict, "routing", "--constrained", "--out", str(logs["constrained"])),
            ),
            outputs=(logs["model"], logs["constrained"]),
            needs=("checkpoint",),
            shares=True,
        ),
        Phase(
            "controls",
            tuple((*predict, "all", *_fewer(name), "--control", name, "--out", str(logs[name])) for name in CONTROLS),
            outputs=tuple(logs[name] for name in CONTROLS),
            needs=("checkpoint",),
            shares=True,
        ),
        Phase(
            "score",
            ((*module, "eval", "score", *map(str, logs.values()), "--out", str(run / "scores.json")),),
            outputs=(run / "scores.json",),
            needs=("evaluation", "controls"),
        ),
        Phase(
            "report",
            ((*module, "eval", "report", "--run", str(run), "--out", str(run / "report.html")),),
            outputs=(run / "report.html",),
            needs=("score",),
        ),
    ]


def _together(processes: int, max_tokens: int) -> tuple[str, ...]:
    """Arguments with which a step's tokens are as many packs as processes, one for each."""
    trainer = ("--trainer.accelerator", "cpu", "--trainer.devices", str(processes), "--trainer.strategy", "ddp")
    packs = ("--data.init_args.packs_per_step", str(processes))
    return (*trainer, *packs, "--data.init_args.max_tokens", str(max_tokens // processes))


def _fewer(control: str) -> tuple[str, ...]:
    """Controls are asked less; a model without training never ends a reply, and is cut early."""
    limit = ("--limit", "250")
    return (*limit, "--max-new-tokens", "16") if control == "random_weights" else limit


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_lanes() -> int:
    """How many phases that share run at once: one on a GPU or a single core."""
    return 1 if torch.cuda.is_available() else min(LANES, num_cores())


def sharing_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What the commands of a phase that shares have besides: their part of the cores.

    Args:
        environment: The present one; a number of threads that it sets already is kept.
    """
    if num_lanes() == 1 or "OMP_NUM_THREADS" in environment:
        return {}
    return {"OMP_NUM_THREADS": str(num_cores() // num_lanes())}


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The commands' environment: one thread per available core, and an allocator that keeps its pages.

    On a CPU glibc otherwise returns the large buffers of every step to the kernel and faults them in again, which costs
    about a fifth of the training time.

    Args:
        environment: The present one; what it sets already is kept.
    """
    defaults = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not torch.cuda.is_available():
        defaults |= {
            "OMP_NUM_THREADS": str(num_cores()),
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": str(16 * 1024**3),
            "MALLOC_TOP_PAD_": str(64 * 1024**2),
        }
    path = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    return {**defaults, **environment, "PYTHONPATH": path}


def estimate(name: str, speed: Speed, scale: float) -> float | None:
    """Seconds that a phase should take on this machine, or None where nothing was measured to compare with."""
    reference = REFERENCE[name]
    if reference.bf16_seconds is None:
        return reference.seconds * (scale if name == "data" else 1.0)
    seconds = reference.bf16_seconds if speed.precision == "bf16-mixed" else reference.seconds
    return seconds * REFERENCE_GFLOPS[speed.precision] / speed.best_gflops if speed.best_gflops else None


def _own_config(name: str, run: Path) -> Path:
    """Write the run's copy of a configuration, with its own folder in every path, unless it is there already."""
    text = (CONFIGS / f"{name}.yaml").read_text().replace(str(DEFAULT_RUN), run.as_posix())
    path = run / "configs" / f"{name}.yaml"
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


def _settings(config: Path) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load(config.read_text())
    return value


def _print_estimates(planned: Sequence[Phase], stamps: Stamps, speed: Speed, scale: float) -> None:
    current = fingerprints(planned)
    left = 0.0
    print(f"\n{'phase':<20} {'estimate':>14}   state")
    for phase in planned:
        entry = stamps.of(phase.name)
        done = entry["state"] == "done" and entry["fingerprint"] == current[phase.name]
        expected = estimate(phase.name, speed, scale)
        left += 0.0 if done else (expected or 0.0) / (num_lanes() if phase.shares else 1)
        shown = clock(expected) if expected is not None else "not measured"
        print(f"{phase.name:<20} {shown:>14}   {'done in ' + clock(entry['seconds']) if done else entry['state']}")
    print(f"{'left':<20} {clock(left) if speed.best_gflops else 'not measured':>14}\n", flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m training.quickstart", description=__doc__)
    result.add_argument("--run", type=Path, default=DEFAULT_RUN, metavar="DIR", help="run folder (%(default)s)")
    result.add_argument("--seed", type=int, default=0, help="of data and training (%(default)s)")
    result.add_argument("--scale", type=float, default=1.0, help="size of the data (%(default)s)")
    result.add_argument("--precision", choices=("bf16-mixed", "32-true"), help="instead of the measured choice")
    result.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="on a CPU, train the last two stages in N processes, each on its part of the cores (1)",
    )
    part = result.add_mutually_exclusive_group()
    part.add_argument("--only", nargs="+", choices=tuple(REFERENCE), metavar="PHASE", help="these phases alone")
    part.add_argument("--from", dest="start", choices=tuple(REFERENCE), metavar="PHASE", help="this phase and later")
    result.add_argument("--again", action="store_true", help="run those phases anew even if they are done")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not done yet; returns the exit status."""
    given = parser().parse_args(arguments)
    again = f"python -m training.quickstart --run {given.run}" if given.run != DEFAULT_RUN else "make quickstart"
    try:
        with locked(given.run):
            return _run(given)
    except PhaseInterruptedError as error:
        print(f"\nStopped {error}. What was done is kept. Continue with: {again}", file=sys.stderr)
        return 130
    except PhaseFailedError as error:
        print(f"\nFailed: {error}\nWhat was done is kept. Continue with: {again}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(given: argparse.Namespace) -> int:
    stamps = Stamps(given.run)
    speed = choose_precision()
    precision = given.precision or stamps.settings.get("precision") or speed.precision
    print(f"precision: {speed.reason}" + (f" (this run keeps {precision})" if precision != speed.precision else ""))
    processes = given.processes or stamps.settings.get("processes") or 1
    if processes > 1 and torch.cuda.is_available():
        raise ValueError(f"--processes: expected 1 where there is a GPU, got {processes}")
    stamps.settings.update(
        precision=precision, gflops=speed.gflops, seed=given.seed, scale=given.scale, processes=processes
    )
    stamps.save()
    planned = phases(given.run, given.seed, given.scale, precision, processes)
    _print_estimates(planned, stamps, Speed(precision, speed.gflops, speed.reason), given.scale)
    names = [phase.name for phase in planned]
    selected = given.only or (names[names.index(given.start) :] if given.start else None)
    run_phases(
        planned,
        given.run,
        child_environment(os.environ),
        selected,
        given.again,
        sharing_environment(os.environ),
        num_lanes(),
    )
    if selected is None:
        print(f"\nThe page: {given.run / 'report.html'}   the model: {given.run / 'checkpoint'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
