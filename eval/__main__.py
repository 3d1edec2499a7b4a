"""``python -m eval list | predict | score | report | sweep``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from eval.controls import PREDICTED_CONTROLS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name; that of the process by default.

    Returns:
        The exit status: 0, 2 for an error of the user's, 130 when interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    return status


def _list(options: argparse.Namespace) -> int:
    from eval.benchmarks.lookup import benchmark_table

    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(benchmark_table(options.data, options.catalog))
    return 0


def _predict(options: argparse.Namespace) -> int:
    from eval.benchmarks.lookup import find_benchmarks
    from eval.predict import Options, predict

    names = options.benchmark.split(",")
    asking = Options(
        control=options.control,
        constrained=options.constrained,
        limit=options.limit,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        dtype=options.dtype,
        device=options.device,
    )
    benchmarks = find_benchmarks(options.data, options.split, names, options.catalog)
    predict(options.checkpoint, benchmarks, options.out, asking)
    return 0


def _score(options: argparse.Namespace) -> int:
    from eval.score import score_files, score_table, write_scores

    scores = score_files(options.files, options.data)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(score_table(scores))
    if options.out:
        write_scores(scores, options.out)
        console.print(f"written to {options.out}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from eval.report.page import write_report

    write_report(options.run_dir, options.out, data=options.data, checkpoint=options.checkpoint)
    print(f"written to {options.out}")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from eval.sweeps.page import ranking_table, write_page
    from eval.sweeps.ranking import rank
    from training.precision import choose_precision
    from training.sweeps.runner import read_sweep, run_sweep

    sweep = read_sweep(options.config)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("", total=len(sweep.cells()))
        results = run_sweep(
            sweep,
            options.out,
            options.precision or choose_precision().precision,
            lambda name, done: progress.update(bar, description=name, advance=int(done)),
        )
    ranking = rank(results)
    console.print(ranking_table(ranking))
    console.print(f"mean rank correlation between columns: {ranking.agreement():.2f}")
    write_page(ranking, options.out / "page.html", options.config.stem)
    console.print(f"written to {options.out / 'results.json'} and {options.out / 'page.html'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="list | predict | score | report | sweep")

    listing = commands.add_parser("list", help="the benchmarks, where their files belong, and which are there")
    listing.add_argument("--data", default=Path("benchmark_data"), type=Path, help="holds their folders (%(default)s)")
    _add_catalog(listing)
    listing.set_defaults(run=_list)

    predict = commands.add_parser("predict", help="ask a checkpoint and log what it says")
    predict.add_argument("--checkpoint", required=True, type=Path, help="checkpoint directory")
    predict.add_argument("--benchmark", required=True, help="names separated by commas, or 'all' that are there")
    predict.add_argument("--data", required=True, type=Path, help="quickstart data, or the folder of benchmark folders")
    _add_catalog(predict)
    predict.add_argument("--out", required=True, type=Path, help="prediction log (.jsonl); continued if it exists")
    predict.add_argument("--split", default="test", choices=("test", "val"), help="select models on 'val' only")
    predict.add_argument("--control", choices=PREDICTED_CONTROLS, help="take something away and measure again")
    predict.add_argument(
        "--constrained", action="store_true", help="decode under the grammar; never for routing scores"
    )
    predict.add_argument("--limit", type=int, help="only the first so many samples of each benchmark")
    predict.add_argument("--batch-size", type=int, default=32, help="conversations decoded together (default 32)")
    predict.add_argument("--max-new-tokens", type=int, default=96, help="longer replies are cut (default 96)")
    predict.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the parameters")
    predict.add_argument("--device", help="such as cpu or cuda; the GPU if there is one by default")
    predict.set_defaults(run=_predict)

    score = commands.add_parser("score", help="turn prediction logs into numbers")
    score.add_argument(
        "files", nargs="+", type=Path, help="logs of the model, of its controls, of constrained decoding"
    )
    score.add_argument("--out", type=Path, help="where to write the scores as JSON")
    score.add_argument("--data", type=Path, help="data directory, if it is not where the log says")
    score.set_defaults(run=_score)

    report = commands.add_parser("report", help="one self-contained page about a run")
    report.add_argument("--run", dest="run_dir", required=True, type=Path, help="run directory: scores, logs, curves")
    report.add_argument("--out", required=True, type=Path, help="the page (.html)")
    report.add_argument("--data", type=Path, help="data directory, if it is not where the logs say")
    report.add_argument("--checkpoint", type=Path, help="checkpoint, if it is not where the logs say")
    report.set_defaults(run=_report)

    sweep = commands.add_parser("sweep", help="train towers alike on several tasks and rank them")
    sweep.add_argument("--config", required=True, type=Path, help="the grid, such as configs/sweeps/backbones.yaml")
    sweep.add_argument("--out", required=True, type=Path, help="results, towers and page; continued if it exists")
    sweep.add_argument("--precision", choices=("32-true", "bf16-mixed"), help="instead of the measured choice")
    sweep.set_defaults(run=_sweep)
    return parser


def _add_catalog(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--catalog", action="append", default=[], type=Path, help="YAML file or folder of benchmark rows of your own"
    )


if __name__ == "__main__":
    sys.exit(main())
