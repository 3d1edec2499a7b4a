"""``python -m eval predict``: ask a model and log what it says."""

from __future__ import annotations

import argparse
from pathlib import Path

from eval.commands.list import add_catalog
from eval.controls import PREDICTED_CONTROLS

HELP = "ask a model and log what it says; the same command again continues, and several share a folder"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", type=Path, help="checkpoint directory")
    model.add_argument(
        "--model",
        help="instead of a checkpoint: transformers:DIR (a vision-language, audio or language model of transformers), "
        "vectors:DIR (a dual encoder or speaker model of transformers), "
        "gold (says the reference), constant or constant:TEXT, replay:LOG (says again "
        "what a log holds), answers:FILE (JSON lines with question_id and text, as LLaVA writes them)",
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--benchmark", help="names separated by commas, or 'all' that are there; see list")
    asked.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="instead of a benchmark, files without references: shards, folders or files of media, JSON lines with a "
        "question and image (audio, video, graph) each",
    )
    parser.add_argument("--prompt", default="", help="what is asked about every file of --input")
    parser.add_argument("--name", default="inputs", help="what --input is called in the log (%(default)s)")
    parser.add_argument(
        "--data", type=Path, help="quickstart data, or the folder of benchmark folders (benchmark_data)"
    )
    add_catalog(parser)
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        help="prediction log, continued if it exists: FILE.jsonl of this process alone, or a folder that any number of "
        "processes and machines share",
    )
    parser.add_argument("--split", default="test", choices=("test", "val"), help="select models on 'val' only")
    control = parser.add_mutually_exclusive_group()
    control.add_argument("--control", choices=PREDICTED_CONTROLS, help="take something away and measure again")
    control.add_argument(
        "--controls",
        nargs="?",
        const="all",
        metavar="NAMES",
        help="the model itself and then its controls (all, or names separated by commas), each into a folder of --out",
    )
    parser.add_argument(
        "--control-limit", type=int, metavar="N", help="with --controls, ask controls so many samples only"
    )
    parser.add_argument("--constrained", action="store_true", help="decode under the grammar; never for routing scores")
    parser.add_argument("--confidence", action="store_true", help="log how likely each reply was, for calibration")
    parser.add_argument(
        "--markers", action="store_true", help="route by the task tokens, whatever router the checkpoint holds"
    )
    parser.add_argument(
        "--generic-loop", action="store_true", help="decode with transformers' own layers instead of fused ones"
    )
    parser.add_argument("--limit", type=int, help="only the first so many samples of each benchmark")
    parser.add_argument("--batch-size", type=int, default=32, help="conversations decoded together (%(default)s)")
    parser.add_argument("--max-new-tokens", type=int, help="longer replies are cut (the benchmark's own limit, or 96)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the parameters")
    parser.add_argument(
        "--boxes", metavar="FORMAT", help="how a model of transformers writes boxes, for box benchmarks"
    )
    parser.add_argument("--device", help="such as cpu or cuda; the GPU if there is one by default")


def run(options: argparse.Namespace) -> int:
    """Ask."""
    from eval.askers.choose import choose_asker
    from eval.askers.session import Decoding
    from eval.benchmarks.benchmark import Benchmark
    from eval.benchmarks.inputs import InputFiles
    from eval.benchmarks.lookup import DATA, find_benchmarks
    from eval.predict import Asking, predict

    decoding = Decoding(
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        dtype=options.dtype,
        device=options.device,
        constrained=options.constrained,
        confidence=options.confidence,
        markers=options.markers,
        fused=not options.generic_loop,
    )
    benchmarks: dict[str, Benchmark]
    if options.input:
        benchmarks = {options.name: InputFiles(options.name, options.input, options.prompt)}
    else:
        names = options.benchmark.split(",")
        benchmarks = find_benchmarks(options.data or DATA, options.split, names, options.catalog)
    for control, out in _runs(options):
        limit = options.limit if control is None or options.controls is None else options.control_limit or options.limit
        asker = choose_asker(options.checkpoint, options.model, decoding, control, options.boxes)
        predict(asker, benchmarks, out, Asking(control, limit, 4 * options.batch_size))
    return 0


def _runs(options: argparse.Namespace) -> list[tuple[str | None, Path]]:
    """(control, log) of everything that is asked.

    Raises:
        ValueError: For an unknown control, or an output that cannot hold several logs.
    """
    if options.controls is None:
        return [(options.control, options.out)]
    names = PREDICTED_CONTROLS if options.controls == "all" else tuple(options.controls.split(","))
    unknown = sorted(set(names) - set(PREDICTED_CONTROLS))
    if unknown:
        raise ValueError(f"--controls: expected some of {PREDICTED_CONTROLS}, got {unknown}")
    if options.out.suffix == ".jsonl":
        raise ValueError(f"--controls: expected a folder for --out, got '{options.out}'")
    return [(None, options.out / "model"), *((name, options.out / name) for name in names)]
