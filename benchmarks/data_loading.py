"""Loaders side by side: the same bytes, decoded and tokenised, in turn, with two workers each.

Images are JPEGs of 224 pixels, clips ten seconds of FLAC; every arm is a process that goes through an epoch to warm up
and one that is timed, and must deliver every sample exactly once. Each library decodes pictures as its own
documentation has it: webdataset, mosaicml-streaming and megatron-energon through PIL, litdata through torchvision, as
ours. What of a ratio is the decoder's shows in ``webdataset_torchvision``, webdataset with the decoder of ours. Rivals
stand in environments of their own (``make bench-environments``); one that is missing, or fails, is named and left out.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.arms import ROOT, Arm, Outcome, available, parser, run_arms, show, write_result
from benchmarks.loaders.corpus import PER_SHARD, write_corpus
from data.index import build_index

SAMPLES = {"image": 6400, "audio": 512}
SOURCES = 50
SECONDS_PER_ARM = 300
_OURS, _PLAIN = "ours", "webdataset"
_TAKES_OUR_DECODER = "webdataset_torchvision"


def arms(data: Path, kind: str) -> list[Arm]:
    """Every loader's arm over one kind of media."""
    common = ("--data", str(data), "--kind", kind)
    made = [Arm(_OURS, "loaders/with_ours.py", common), Arm(_PLAIN, "loaders/with_webdataset.py", common)]
    if kind == "image":
        made.append(Arm(_TAKES_OUR_DECODER, "loaders/with_webdataset.py", (*common, "--torchvision")))
    return made + [Arm(name, f"loaders/with_{name}.py", common, name) for name in ("litdata", "mosaicml", "energon")]


def prepare(data: Path, kind: str, samples: int, chosen: list[Arm], console: Console) -> list[Arm]:
    """Write the corpus, and what loaders with a format of their own make of it; returns the arms that can run."""
    console.print(f"{kind}: writing {samples} samples, unless they are there")
    write_corpus(data, kind, samples)
    ready = []
    for arm in chosen:
        done = data / kind / f"prepared-{arm.name}"
        if arm.environment is not None and not done.is_file():
            console.print(f"{kind}: preparing {arm.name}")
            command = [arm.python, str(ROOT / "benchmarks" / arm.script), *arm.arguments, "--prepare"]
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if result.returncode:
                told = f"left out: {arm.name} cannot prepare its data:\n{result.stderr[-2000:]}"
                console.print(told, markup=False, highlight=False)
                continue
            done.touch()
        ready.append(arm)
    return ready


def check(outcome: Outcome, console: Console) -> None:
    """Say which arms did not deliver every sample exactly once; energon's stream knows no epochs, it will be there."""
    ours = next(item.values for item in outcome.rounds if item.arm == _OURS)
    wrong = {
        item.arm: item.values["samples"]
        for item in outcome.rounds
        if (item.values["samples"], item.values["fingerprint"]) != (ours["samples"], ours["fingerprint"])
    }
    for arm, samples in wrong.items():
        console.print(f"{arm}: {samples} samples, not each of the {ours['samples']} exactly once")


def index_speed(data: Path) -> float:
    """MB/s at which an index is built, shards in the page cache, best of three."""
    shards = sorted((data / "image" / "tar").glob("*.tar"))
    size = sum(len(shard.read_bytes()) for shard in shards)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        for shard in shards:
            build_index(str(shard))
        seconds.append(time.perf_counter() - started)
    return size / 1e6 / min(seconds)


def mixture_cost(data: Path, rounds: int, console: Console) -> tuple[float, Outcome]:
    """Share of the speed that 50 sources cost, a shard each, over one that has all of them."""
    sources = min(SOURCES, len(list((data / "image" / "tar").glob("*.tar"))))
    common = ("--data", str(data), "--kind", "image", "--sources")
    chosen = [Arm(f"{count} sources", "loaders/with_ours.py", (*common, str(count))) for count in (1, sources)]
    outcome = run_arms(chosen, rounds, console, SECONDS_PER_ARM)
    one, many = (outcome.median(arm.name, "samples_per_second") for arm in chosen)
    return 1 - many / one, outcome


def compare(kind: str, outcome: Outcome) -> tuple[dict[str, float], dict[str, float]]:
    """Ratios of speed, ours over each rival's and over the best one's, and ratios of memory, ours over webdataset's."""
    ours = outcome.median(_OURS, "samples_per_second")
    speeds = {arm: outcome.median(arm, "samples_per_second") for arm in outcome.arms() if arm != _OURS}
    ratios = {f"{kind}/{arm}": ours / speed for arm, speed in speeds.items()}
    ratios[f"{kind}/best"] = ours / max(speed for arm, speed in speeds.items() if arm != _TAKES_OUR_DECODER)
    memory = {arm: outcome.median(arm, "memory_mib") for arm in (_OURS, _PLAIN)}
    return ratios, {f"{kind}/memory_over_webdataset": memory[_OURS] / memory[_PLAIN]}


def main() -> int:
    """Run everything; returns the exit status."""
    command = parser("data_loading", __doc__)
    command.set_defaults(rounds=3)
    command.add_argument("--data", type=Path, default=Path("runs/benchmarks/data"), help="corpora (%(default)s)")
    command.add_argument("--scale", type=float, default=1.0, help="share of the samples, to try it out (%(default)s)")
    given = command.parse_args()
    data, console = given.data.resolve(), Console()
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    everything = Outcome()

    def take(outcome: Outcome, kind: str | None = None, **measured: Any) -> None:
        everything.rounds += [item if kind is None else item.of_kind(kind) for item in outcome.rounds]
        figures.update(measured)
        write_result("data_loading", everything, ratios, figures, given.json)  # what is there, should the rest fail

    for kind, full in SAMPLES.items():
        samples = max(8, round(full * given.scale / PER_SHARD[kind])) * PER_SHARD[kind]
        chosen = prepare(data, kind, samples, available(arms(data, kind), console), console)
        optional = [arm.name for arm in chosen if arm.name not in (_OURS, _PLAIN)]
        outcome = run_arms(chosen, given.rounds, console, SECONDS_PER_ARM, optional)
        console.print(f"\n{kind}: samples per second and resident MiB, medians of {given.rounds} rounds")
        show(outcome, ("samples_per_second", "memory_mib"), console)
        check(outcome, console)
        faster, memory = compare(kind, outcome)
        ratios |= faster
        take(outcome, kind, **memory)
    take(Outcome(), index_mb_per_second=index_speed(data))
    cost, mixed = mixture_cost(data, given.rounds, console)
    take(mixed, fifty_sources_cost=cost)
    for name, value in {**ratios, **figures}.items():
        console.print(f"{name:32} {value:8.2f}")
    console.print(f"also in {given.json}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
