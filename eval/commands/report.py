"""``python -m eval report``: one self-contained page about a run, or about prediction logs."""

from __future__ import annotations

import argparse
from pathlib import Path

from eval.commands.compare import own_log
from eval.commands.list import add_catalog
from eval.commands.score import add_judge, chosen_judge

HELP = "one self-contained page about a training run, or about prediction logs"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("files", nargs="*", type=Path, help="logs of one model and of its controls; folders of logs")
    parser.add_argument(
        "--run", dest="run_dir", type=Path, help="instead of logs, a run directory: scores, logs, curves"
    )
    parser.add_argument("--out", required=True, type=Path, help="the page (.html)")
    parser.add_argument("--data", type=Path, help="data directory, if it is not where the logs say")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint of a run, if it is not where the logs say")
    parser.add_argument(
        "--before",
        type=Path,
        help="log of the model as it was, such as before its heads were trained: tells if answers in words are worse",
    )
    add_catalog(parser)
    add_judge(parser)


def run(options: argparse.Namespace) -> int:
    """Write the page.

    Raises:
        ValueError: Unless either logs or a run directory are given.
    """
    from eval.log import find_logs
    from eval.report.page import write_log_report, write_report

    if bool(options.files) == (options.run_dir is not None):
        raise ValueError("expected either logs or --run, got " + ("both" if options.files else "neither"))
    before = None if options.before is None else own_log(options.before)
    if options.run_dir is not None:
        write_report(options.run_dir, options.out, data=options.data, checkpoint=options.checkpoint, before=before)
    else:
        judge = chosen_judge(options, options.files[0])
        logs = [log for path in options.files for log in find_logs(path)]
        write_log_report(logs, options.out, data=options.data, catalogs=options.catalog, judge=judge, before=before)
    print(f"written to {options.out}")
    return 0
