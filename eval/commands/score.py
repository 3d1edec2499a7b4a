"""``python -m eval score``: turn prediction logs into numbers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from eval.commands.list import add_catalog
from eval.judges.judge import Judge, Remembered, RuleJudge

HELP = "turn prediction logs into numbers, with errors, protocols and controls"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        help="logs of the model, of its controls, of constrained decoding; folders of logs",
    )
    parser.add_argument("--out", type=Path, help="where to write the scores as JSON")
    parser.add_argument("--data", type=Path, help="data directory, if it is not where the log says")
    add_catalog(parser)
    add_judge(parser)


def run(options: argparse.Namespace) -> int:
    """Score, print and write."""
    from eval.log import find_logs
    from eval.score import score_files, score_table, write_scores

    logs = [log for path in options.files for log in find_logs(path)]
    scores = score_files(logs, options.data, options.catalog, chosen_judge(options, options.files[0]))
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(score_table(scores))
    if options.out:
        write_scores(scores, options.out)
        console.print(f"written to {options.out}")
    return 0


def add_judge(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a judge."""
    group = parser.add_argument_group("judge", "for metrics that a judge decides; without one they are n/a")
    group.add_argument(
        "--judge", metavar="URL", help="OpenAI-compatible endpoint, such as http://localhost:8000/v1, or rule:exact"
    )
    group.add_argument("--judge-model", help="name of the model at the endpoint")
    group.add_argument("--judge-key", default="OPENAI_API_KEY", help="environment variable of its key (%(default)s)")
    group.add_argument("--judge-timeout", type=float, default=60.0, help="seconds per request (%(default)s)")
    group.add_argument("--judge-parallel", type=int, default=8, help="requests under way at once (%(default)s)")
    group.add_argument("--judge-memory", type=Path, help="file of verdicts; beside the first log by default")


def chosen_judge(options: argparse.Namespace, log: Path) -> Judge | None:
    """The judge that the options name, with its memory, or None.

    Raises:
        ValueError: If the options do not fit together.
    """
    if options.judge is None:
        if options.judge_model is not None:
            raise ValueError("--judge-model: expected --judge with the endpoint's address, got none")
        return None
    if options.judge.startswith("rule:"):
        return RuleJudge(options.judge.removeprefix("rule:"))
    if options.judge_model is None:
        raise ValueError("--judge: expected --judge-model with the model's name at the endpoint, got none")
    from eval.judges.endpoint import EndpointJudge

    judge = EndpointJudge(
        options.judge,
        options.judge_model,
        key_variable=options.judge_key,
        timeout=options.judge_timeout,
        parallel=options.judge_parallel,
    )
    return Remembered(judge, options.judge_memory or log.with_name(f"{log.name}.verdicts"))
