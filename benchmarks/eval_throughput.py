"""Evaluation beside transformers: six questions per image, decoding, and how long scoring takes.

Arms answer the same prompts with the same weights, in processes of their own, in turn. In fp32 their token ids must be
equal; in bf16 every first difference must lie between tokens whose logits bf16 cannot tell apart. transformers' inputs
are made before its clock runs. Ratios are of processor time, of which every arm has one thread, so that other work on
the machine does not decide them. ``decode/batch..`` is the smaller of the ratios in fp32 and in bf16;
``score/..._seconds`` are seconds, not ratios.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from rich.console import Console

from benchmarks.arms import Arm, Outcome, parser, run_arms, show, write_result
from benchmarks.evaluation.agreement import answers_of, check_ids, differences
from benchmarks.evaluation.model import write_model
from benchmarks.evaluation.scoring import write_log

PARTS = ("six_questions", "decode", "score")
DTYPES = ("float32", "bfloat16")


class Throughput:
    """What is measured, part by part.

    Args:
        given: The command's options.
        console: Told of progress.
    """

    def __init__(self, given: argparse.Namespace, console: Console) -> None:
        self.given, self.console = given, console
        self.folder: Path = given.folder.resolve()
        self.everything = Outcome()
        self.ratios: dict[str, float] = {}
        self.others: dict[str, float] = {}

    def six_questions(self) -> None:
        """Six questions per image, each way; ours encodes an image and reads its prefix once."""
        names = ("ours", "theirs-1", "theirs-16")
        outcome = self._answer(names, "six_questions", ("--images", str(self.given.images)))
        check_ids(self.folder, "six_questions", names)
        seconds = {name: outcome.median(name, "cpu_seconds") for name in names}
        self.ratios["six_questions/batch1"] = seconds["theirs-1"] / seconds["ours"]
        self.ratios["six_questions/batch16_sorted"] = seconds["theirs-16"] / seconds["ours"]

    def decode(self) -> None:
        """Continuations of the same prompts, alone and sixteen together, in both types."""
        names = ("ours", "theirs")
        for batch in (1, 16):
            for dtype in DTYPES:
                work = f"decode-{batch}-{dtype}"
                options = ("--batch", str(batch), "--dtype", dtype, "--new", str(self.given.new))
                outcome = self._answer(names, work, options)
                seconds = {name: outcome.median(name, "cpu_seconds") for name in names}
                self.ratios[f"decode/batch{batch}_{dtype}"] = seconds["theirs"] / seconds["ours"]
                if dtype == "float32":
                    check_ids(self.folder, work, names)
                else:
                    found = differences(self.folder, *(answers_of(self.folder, work, name) for name in names))
                    self.others[f"decode/batch{batch}_bfloat16_rows_that_differ"] = len(found)
                    self.others[f"decode/batch{batch}_bfloat16_largest_gap"] = max(found, default=0.0)
            self.ratios[f"decode/batch{batch}"] = min(self.ratios[f"decode/batch{batch}_{dtype}"] for dtype in DTYPES)

    def score(self) -> None:
        """Scoring logs; memory must not grow with the number of predictions."""
        many = self.given.predictions
        logs = {"vqa": ("vqav2", many), "vqa_tenth": ("vqav2", many // 10), "cider": ("coco_captions", many // 40)}
        arms = []
        for name, (benchmark, number) in logs.items():
            with self.console.status(f"writing {number} predictions"):
                write_log(self.folder / f"{name}.jsonl", benchmark, number)
            arms.append(Arm(name, "evaluation/scoring.py", ("--log", str(self.folder / f"{name}.jsonl"))))
        outcome = self._run("score", arms, ["seconds", "peak_mib"])
        self.others |= {f"score/{name}_seconds": outcome.median(name, "seconds") for name in ("vqa", "cider")}
        peaks = [outcome.median(name, "peak_mib") for name in ("vqa", "vqa_tenth")]
        self.others[f"score/vqa_mib_more_for_{many - many // 10}_more"] = peaks[0] - peaks[1]

    def _answer(self, names: tuple[str, ...], work: str, options: tuple[str, ...]) -> Outcome:
        common = ("--folder", str(self.folder), "--work", work.split("-")[0], *options)
        arms = [
            Arm(name, "evaluation/answering.py", (*common, "--way", name, "--answers", f"{work}-{name}.json"))
            for name in names
        ]
        return self._run(work, arms, ["per_second", "cpu_seconds"])

    def _run(self, work: str, arms: list[Arm], columns: list[str]) -> Outcome:
        outcome = run_arms(arms, self.given.rounds, self.console)
        self.console.print(work)
        show(outcome, columns, self.console)
        self.everything.rounds += [item.of_kind(work) for item in outcome.rounds]
        return outcome


def main() -> int:
    """Run what was asked for; returns the exit status."""
    command = parser("eval_throughput", __doc__)
    command.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to measure (all)")
    command.add_argument("--images", type=int, default=6, help="with six questions each (%(default)s)")
    command.add_argument("--new", type=int, default=128, help="tokens per continuation (%(default)s)")
    command.add_argument("--predictions", type=int, default=200_000, help="VQA predictions to score (%(default)s)")
    command.add_argument("--folder", type=Path, default=Path("runs/benchmarks/evaluation"), help="(%(default)s)")
    given = command.parse_args()
    console = Console()
    measured = Throughput(given, console)
    shutil.rmtree(measured.folder, ignore_errors=True)
    with console.status("writing the model"):
        write_model(measured.folder)
    for part in given.parts:
        getattr(measured, part)()
    for key, value in {**measured.ratios, **measured.others}.items():
        console.print(f"{key:44} {value:8.2f}")
    write_result("eval_throughput", measured.everything, measured.ratios, measured.others, given.json)
    shutil.rmtree(measured.folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
