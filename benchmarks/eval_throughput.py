"""Evaluation beside transformers: six questions per image, decoding, and how long scoring takes.

Arms answer the same prompts with the same weights in fp32, in processes of their own, in turn; token ids must be equal.
transformers' inputs are made before its clock runs. ``score/..._seconds`` are seconds, not ratios.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console

from benchmarks.arms import Arm, Outcome, parser, run_arms, show, write_result
from benchmarks.evaluation.model import write_model
from benchmarks.evaluation.scoring import write_log

LOGS = {"vqa": ("vqav2", 200_000), "vqa_tenth": ("vqav2", 20_000), "cider": ("coco_captions", 5_000)}


def check(outcome: Outcome, work: str) -> None:
    """All ways must answer alike.

    Raises:
        RuntimeError: If they do not.
    """
    found = {item.arm: item.values["fingerprint"] for item in outcome.rounds}
    if len(set(found.values())) != 1:
        raise RuntimeError(f"{work}: expected the same token ids from every arm, got {found}")


def main() -> int:
    """Run everything; returns the exit status."""
    command = parser("eval_throughput", __doc__)
    command.add_argument("--images", type=int, default=6, help="with six questions each (%(default)s)")
    command.add_argument("--folder", type=Path, default=Path("runs/benchmarks/evaluation"), help="(%(default)s)")
    given = command.parse_args()
    folder, console, everything = given.folder.resolve(), Console(), Outcome()
    shutil.rmtree(folder, ignore_errors=True)
    ratios: dict[str, float] = {}
    with console.status("writing the model"):
        write_model(folder)

    common = ("--folder", str(folder), "--work", "six_questions", "--images", str(given.images))
    names = ("ours", "theirs-1", "theirs-16")
    arms = [Arm(name, "evaluation/answering.py", (*common, "--way", name)) for name in names]
    outcome = run_arms(arms, given.rounds, console)
    check(outcome, "six questions")
    show(outcome, ["per_second"], console)
    seconds = {name: outcome.median(name, "seconds") for name in names}
    ratios["six_questions/batch1"] = seconds["theirs-1"] / seconds["ours"]
    ratios["six_questions/batch16_sorted"] = seconds["theirs-16"] / seconds["ours"]
    everything.rounds += [item.of_kind("six_questions") for item in outcome.rounds]

    for batch in (1, 16):
        common = ("--folder", str(folder), "--work", "decode", "--batch", str(batch))
        arms = [Arm(name, "evaluation/answering.py", (*common, "--way", name)) for name in ("ours", "theirs")]
        outcome = run_arms(arms, given.rounds, console)
        check(outcome, f"decoding {batch}")
        show(outcome, ["per_second"], console)
        ratios[f"decode/batch{batch}"] = outcome.median("theirs", "seconds") / outcome.median("ours", "seconds")
        everything.rounds += [item.of_kind(f"decode-{batch}") for item in outcome.rounds]

    arms = []
    for name, (benchmark, number) in LOGS.items():
        with console.status(f"writing {number} predictions"):
            write_log(folder / f"{name}.jsonl", benchmark, number)
        arms.append(Arm(name, "evaluation/scoring.py", ("--log", str(folder / f"{name}.jsonl"))))
    outcome = run_arms(arms, given.rounds, console)
    show(outcome, ["seconds", "peak_mib"], console)
    fractions = {f"score/{name}_seconds": outcome.median(name, "seconds") for name in ("vqa", "cider")}
    fractions["score/vqa_mib_more_for_180000_more"] = outcome.median("vqa", "peak_mib") - outcome.median(
        "vqa_tenth", "peak_mib"
    )
    everything.rounds += [item.of_kind("score") for item in outcome.rounds]
    for key, value in {**ratios, **fractions}.items():
        console.print(f"{key:40} {value:8.2f}")
    write_result("eval_throughput", everything, ratios, fractions, given.json)
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
