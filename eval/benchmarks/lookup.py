"""Benchmarks by name: the quickstart's on its shards, and those of the catalogue in their official files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table

from eval.benchmarks.benchmark import Benchmark, BenchmarkError
from eval.benchmarks.catalog import CATALOG, CatalogBenchmark, catalog_benchmarks, read_catalog
from eval.benchmarks.inputs import InputFiles
from eval.benchmarks.quickstart import NAMES, quickstart_benchmarks
from eval.log import Log

ALL = "all"
DATA = "benchmark_data"
"""Where benchmarks are looked for by default."""


def find_benchmarks(
    data: str | Path,
    split: str = "test",
    names: Iterable[str] = (),
    catalogs: Sequence[str | Path] = (),
    extra: Iterable[str] = (),
) -> dict[str, Benchmark]:
    """Benchmarks by name, in the order asked for.

    Args:
        data: The quickstart's data directory, or the folder that holds the benchmarks' folders.
        split: Which of the quickstart's splits; those of the catalogue have their own.
        names: None, or "all", for everything whose files are there.
        catalogs: YAML files or folders of rows beside the shipped ones.
        extra: Class paths of the caller's own that rows may name.

    Raises:
        BenchmarkError: For an unknown name, or if nothing is there.
    """
    wanted = [name for name in names if name != ALL]
    rows = read_catalog(CATALOG, *catalogs)
    if not wanted:
        wanted = [name for name in NAMES if any((Path(data) / split).glob(f"{name}-*.tar"))]
        wanted += [name for name in rows if not CatalogBenchmark(name, rows[name], data, extra).reader.missing]
        if not wanted:
            raise BenchmarkError(f"expected files of a benchmark below '{data}', got none; see python -m eval list")
    unknown = sorted(set(wanted) - set(NAMES) - set(rows))
    if unknown:
        raise BenchmarkError(f"benchmark: expected one of {sorted({*NAMES, *rows})}, got {unknown}")
    quick = [name for name in wanted if name in NAMES]
    found = quickstart_benchmarks(data, split, quick) if quick else {}
    found |= catalog_benchmarks(data, [name for name in wanted if name in rows], catalogs, extra)
    return {name: found[name] for name in wanted}


def benchmarks_of(
    log: Log, data: str | Path | None = None, catalogs: Sequence[str | Path] = (), extra: Iterable[str] = ()
) -> dict[str, Benchmark]:
    """The benchmarks that a log has predictions of.

    Args:
        log: The log.
        data: Where their files are, if not where the log says.
        catalogs: YAML files or folders of rows beside the shipped ones.
        extra: Class paths of the caller's own that rows may name.

    Raises:
        BenchmarkError: If one is unknown here.
    """
    header = log.header
    inputs = header.info.get("inputs", {})
    found: dict[str, Benchmark] = {name: InputFiles(name, **inputs[name]) for name in log.benchmarks if name in inputs}
    others = [name for name in log.benchmarks if name not in inputs]
    if others:
        found |= find_benchmarks(data or header.info["data"], str(header.identity["split"]), others, catalogs, extra)
    return {name: found[name] for name in log.benchmarks}


def benchmark_table(data: str | Path, catalogs: Sequence[str | Path] = (), extra: Iterable[str] = ()) -> Table:
    """Every benchmark of the catalogue: protocol, media, metrics, where its files belong and whether they are there."""
    table = Table(title=f"Benchmarks below '{data}'", show_lines=False)
    for name in ("name", "protocol", "media", "metrics", "wants"):
        table.add_column(name, overflow="fold")
    table.add_column("there", no_wrap=True)
    rows = read_catalog(CATALOG, *catalogs)
    for name, row in sorted(rows.items()):
        benchmark = CatalogBenchmark(name, row, data, extra)
        missing = benchmark.reader.missing
        files = ", ".join(str(path) for path in benchmark.reader.files)
        wants = files + (f"; {row['wants']}" if row.get("wants") else "")
        there = "[green]yes[/green]" if not missing else f"{len(missing)} missing"
        metrics = ", ".join(metric.removeprefix(f"{name}/") for metric in benchmark.metrics)
        metrics = "for its server, see submit" if benchmark.hidden else metrics
        table.add_row(name, benchmark.protocol, str(row["media"]), metrics, wants, there)
    table.caption = "and on the quickstart's shards: " + ", ".join(NAMES)
    return table
