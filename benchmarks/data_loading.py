"""Loaders side by side: the same bytes, decoded and tokenised, in turn, with two workers each.

Images are JPEGs of 224 pixels, clips ten seconds of FLAC; every arm is a process that goes through an epoch to warm up
and one that is timed, and must deliver every sample exactly once. Rivals stand in environments of their own
(``make bench-environments``); one that is missing is named and left out.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from benchmarks.arms import ROOT, Arm, Outcome, available, parser, run_arms, show, write_result
from benchmarks.loaders.corpus import write_corpus
from data.index import build_index

RIVALS = {"webdataset": None, "litdata": "litdata", "mosaicml": "mosaicml", "energon": "energon"}
SAMPLES = {"image": 6144, "audio": 512}
SOURCES = 50


def arms(data: Path, kind: str) -> list[Arm]:
    """Every loader's arm over one kind of media."""
    common = ("--data", str(data), "--kind", kind)
    rivals = [Arm(name, f"loaders/with_{name}.py", common, environment) for name, environment in RIVALS.items()]
    return [Arm("ours", "loaders/with_ours.py", common), *rivals]


def prepare(data: Path, kind: str, chosen: list[Arm], console: Console) -> None:
    """Write the corpus, and what loaders with a format of their own make of it."""
    with console.status(f"writing {SAMPLES[kind]} {kind} samples"):
        write_corpus(data, kind, SAMPLES[kind])
    for arm in chosen:
        done = data / kind / f"prepared-{arm.name}"
        if arm.environment is None or done.is_file():
            continue
        with console.status(f"preparing {arm.name}"):
            command = [arm.python, str(ROOT / "benchmarks" / arm.script), *arm.arguments, "--prepare"]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        done.touch()


def check(outcome: Outcome, console: Console) -> None:
    """Say which arms did not deliver every sample exactly once; energon's stream knows no epochs, it will be there."""
    ours = next(item.values for item in outcome.rounds if item.arm == "ours")
    for item in outcome.rounds:
        found = item.values["samples"], item.values["fingerprint"]
        if found != (ours["samples"], ours["fingerprint"]):
            console.print(f"{item.arm}: {found[0]} samples, not each of the {ours['samples']} exactly once")


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
    """Share of the speed that 50 sources cost, over one."""
    write_corpus(data / "fifty", "image", SAMPLES["image"], per_shard=SAMPLES["image"] // SOURCES)
    common = ("--data", str(data / "fifty"), "--kind", "image", "--sources")
    chosen = [Arm(f"{count} sources", "loaders/with_ours.py", (*common, str(count))) for count in (1, SOURCES)]
    outcome = run_arms(chosen, rounds, console)
    one, many = (outcome.median(arm.name, "samples_per_second") for arm in chosen)
    return 1 - many / one, outcome


def main() -> int:
    """Run everything; returns the exit status."""
    command = parser("data_loading", __doc__)
    command.add_argument("--data", type=Path, default=Path("runs/benchmarks/data"), help="corpora (%(default)s)")
    given = command.parse_args()
    data, console = given.data.resolve(), Console()
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    everything = Outcome()
    for kind in SAMPLES:
        chosen = available(arms(data, kind), console)
        prepare(data, kind, chosen, console)
        outcome = run_arms(chosen, given.rounds, console)
        console.print(f"\n{kind}: samples per second and resident MiB, medians of {given.rounds} rounds")
        show(outcome, ("samples_per_second", "memory_mib"), console)
        check(outcome, console)
        ours = outcome.median("ours", "samples_per_second")
        speeds = {arm: outcome.median(arm, "samples_per_second") for arm in outcome.arms() if arm != "ours"}
        ratios |= {f"{kind}/{arm}": ours / speed for arm, speed in speeds.items()}
        ratios[f"{kind}/best"] = ours / max(speeds.values())
        memory = {arm: outcome.median(arm, "memory_mib") for arm in ("ours", "webdataset")}
        figures[f"{kind}/memory_over_webdataset"] = memory["ours"] / memory["webdataset"]
        everything.rounds += [item.of_kind(kind) for item in outcome.rounds]
    figures["index_mb_per_second"] = index_speed(data)
    figures["fifty_sources_cost"], mixed = mixture_cost(data, given.rounds, console)
    everything.rounds += mixed.rounds
    for name, value in {**ratios, **figures}.items():
        console.print(f"{name:32} {value:8.2f}")
    write_result("data_loading", everything, ratios, figures, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
