"""How training's cost grows: in samples at fixed packs, and in tokens per sample at fixed packs, from once to 16 times.

In turn within each round, so that a drift of the machine hits all sizes alike. ``samples`` trains on k times as many
samples of one length; ``tokens`` on as many samples, each k times as long.
"""

from __future__ import annotations

import math
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.arms import Outcome, Round, Watch, parser, show, write_result
from benchmarks.steps.plain import take_steps
from benchmarks.steps.workload import make_recipe, make_steps
from training.recipe import Recipe

TIMES = (1, 2, 4, 8, 16)
PACK = 1024
SHORT, SAMPLES = 32, 64
"""Tokens of the shortest sample, and samples of the smallest set."""


def lengths(axis: str, times: int) -> list[list[int]]:
    """Samples per pack, so that every pack but the last is full."""
    length = SHORT * (times if axis == "tokens" else 1)
    count = SAMPLES * (times if axis == "samples" else 1)
    room = PACK // length
    return [[length] * min(room, count - start) for start in range(0, count, room)]


def seconds(recipe: Recipe, axis: str, times: int) -> float:
    """Of one pass over the samples."""
    ended = take_steps(recipe, make_steps(recipe.generalist.plan(), lengths(axis, times)))
    return ended[-1] - ended[0]


def main() -> int:
    """Measure, print a table and write the result."""
    given = parser("scaling", __doc__)
    given.set_defaults(rounds=3)
    args = given.parse_args()
    console, outcome = Console(), Outcome()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        recipe = make_recipe(Path(folder))
        recipe.configure_model()
        seconds(recipe, "samples", 2)
        for number in range(args.rounds):
            for axis in ("samples", "tokens"):
                for times in TIMES:
                    console.print(f"round {number + 1}/{args.rounds}: {axis} x{times}", end="\r")
                    watch = Watch()
                    took = seconds(recipe, axis, times)
                    size = sum(map(sum, lengths(axis, times)))
                    values = {
                        "seconds": took,
                        "microseconds_per_token": 1e6 * took / size,
                        "versions": {"torch": version("torch")},
                    }
                    outcome.rounds.append(Round(f"{axis}/{times}", number, values, watch.foreign()))
    show(outcome, ["seconds", "microseconds_per_token"], console)
    fractions = {}
    for axis in ("samples", "tokens"):
        grown = outcome.median(f"{axis}/16", "seconds") / outcome.median(f"{axis}/1", "seconds")
        fractions[f"exponent_{axis}"] = math.log(grown) / math.log(16)
        console.print(
            f"{axis}: 16 times as many cost {grown:.1f} times as much (exponent {fractions[f'exponent_{axis}']:.2f})"
        )
    write_result("scaling", outcome, {}, fractions, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
