"""Builds the quickstart data: shards of three splits and a manifest, in parallel, resumable."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import signal
import threading
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data.quickstart.modules import ModuleGraph, read_module_graph
from data.quickstart.plan import Job, Written, counts, fingerprint, jobs, write_shard
from data.quickstart.scenes import scan_split
from data.quickstart.speech import VARIANTS

MANIFEST = "manifest.json"


class BuildError(RuntimeError):
    """The build cannot start: the message says what is missing or in the way."""


def build(out: str | Path, seed: int = 0, scale: float = 1.0, workers: int = 2, console: Console | None = None) -> Path:
    """Write the quickstart's shards and manifest; shards that are there already are kept.

    Args:
        out: The output directory.
        seed: Everything follows from it.
        scale: Multiplies the record counts.
        workers: Processes.
        console: Where progress goes.

    Returns:
        The path of the manifest.

    Raises:
        BuildError: If a package is missing, an argument is out of range, or foreign shards lie in the directory.
    """
    if scale <= 0 or workers < 1 or seed < 0:
        raise BuildError(f"expected scale > 0, workers >= 1 and seed >= 0, got {scale}, {workers} and {seed}")
    for module, package in (("sklearn", "scikit-learn"), ("espeakng_loader", "espeakng-loader")):
        if find_spec(module) is None:
            raise BuildError(f"the quickstart data needs {package}: install the extra 'synthesis'")
    console = console or Console()
    directory = Path(out)
    with console.status("reading the import graph of the standard library"):
        modules = read_module_graph()
    planned = jobs(scale)
    manifest = _start(directory, planned, seed, scale, modules)
    todo = [job for job in planned if job.name not in manifest["shards"]]
    with _progress(console) as progress:
        bars = _bars(progress, planned, todo)
        for written in _write_all(todo, seed, modules, directory, workers):
            entry = asdict(written)
            manifest["shards"][entry.pop("name")] = entry
            _save(directory, manifest)
            job = next(job for job in planned if job.name == written.name)
            progress.advance(bars[job.group], written.samples)
    manifest["complete"] = True
    return _save(directory, manifest)


def _write_all(todo: list[Job], seed: int, modules: ModuleGraph, directory: Path, workers: int) -> Any:
    """Yield the shards as they are finished.

    Each is written by a fresh process: espeak-ng keeps state between utterances, and a shard's bytes must not depend
    on what was spoken before. Ctrl-C lets the shards in work finish.
    """
    if not todo:
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data.quickstart.plan", "sklearn.datasets"])
    pool = ProcessPoolExecutor(workers, context, _prepare_worker, max_tasks_per_child=1)
    futures: list[Future[Written]] = []
    try:
        futures = [pool.submit(write_shard, job, seed, modules, str(directory)) for job in todo]
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it however it ends: a worker that waits for work would stay for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _start(directory: Path, planned: list[Job], seed: int, scale: float, modules: ModuleGraph) -> dict[str, Any]:
    """The manifest to go on with: the earlier one where it fits, without shards that are damaged or missing."""
    manifest = {
        "version": 1,
        "seed": seed,
        "scale": scale,
        "fingerprint": fingerprint(seed, scale, modules),
        "python": platform.python_version(),
        "module_list_sha256": modules.list_hash,
        "counts": counts(scale),
        "identities": identities(seed, modules),
        "complete": False,
        "shards": {},
    }
    names = {job.name for job in planned}
    earlier = _earlier(directory)
    if earlier.get("fingerprint") == manifest["fingerprint"]:
        found = earlier["shards"].items()
        manifest["shards"] = {name: entry for name, entry in found if _intact(directory / name, entry)}
    else:
        for name in earlier.get("shards", {}):
            (directory / name).unlink(missing_ok=True)
    for split in ("train", "val", "test"):
        (directory / split).mkdir(parents=True, exist_ok=True)
        for stale in (directory / split).glob("*.building"):
            shutil.rmtree(stale)
        foreign = sorted(f"{split}/{path.name}" for path in (directory / split).glob("*.tar"))
        foreign = [name for name in foreign if name not in names]
        if foreign:
            raise BuildError(f"'{directory}' holds shards of another origin: {', '.join(foreign[:5])}; move them away")
    _save(directory, manifest)
    return manifest


def identities(seed: int, modules: ModuleGraph) -> dict[str, dict[str, list[Any]]]:
    """What each split may use and no other split does: scans, voices, target modules and link endpoints."""
    scans, targets = scan_split(seed), modules.split(seed)
    return {
        split: {
            "scans": sorted(scan for part in scans[split].values() for scan in part),
            "voices": sorted(voice for part in VARIANTS[split].values() for voice in part),
            "modules": [modules.names[i] for i in targets[split]],
        }
        for split in ("train", "val", "test")
    }


def _earlier(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text())
    except ValueError:
        raise BuildError(f"'{path}' is not JSON: remove it, or choose another directory") from None
    if not isinstance(value, dict) or not isinstance(value.get("shards"), dict):
        raise BuildError(f"'{path}' is no manifest of this command: choose another directory")
    return value


def _intact(path: Path, entry: dict[str, Any]) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]


def _save(directory: Path, manifest: dict[str, Any]) -> Path:
    path = directory / MANIFEST
    partial = path.with_suffix(".json.part")
    shards = dict(sorted(manifest["shards"].items()))
    partial.write_text(json.dumps({**manifest, "shards": shards}, indent=1, sort_keys=True) + "\n")
    os.replace(partial, path)
    return path


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _bars(progress: Progress, planned: list[Job], todo: list[Job]) -> dict[str, Any]:
    totals: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for job in planned:
        totals[job.group] += job.stop - job.start
    for job in todo:
        missing[job.group] += job.stop - job.start
    return {name: progress.add_task(name, total=n, completed=n - missing[name]) for name, n in totals.items()}
