"""A sweep of image towers: backbones x pretraining x tasks x modes x seeds, each trained and measured alike.

Battle of the Backbones' protocol: everything but the tower stays fixed. The grid comes from one YAML file
(``configs/sweeps/backbones.yaml``); what is measured is written after every cell, and a cell whose settings have not
changed is not measured again.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import yaml
from jsonargparse import ArgumentParser

from layers.encoder import Encoder
from training.towers import TOWER_FILE, TowerRecipe
from training.towers.data import TowerData, TowerItem
from training.towers.fit import fit_tower
from training.towers.objectives import TowerObjective

Part = Mapping[str, Any]
"""``{class_path, init_args}``."""


@dataclass(frozen=True)
class Fit:
    """How a tower is trained, and on what.

    Args:
        objective: What is learned; its ``hidden_size`` is filled in.
        train: Shards to learn from.
        steps: Optimizer steps.
        val: Shards to measure on; those of training, where nothing is measured.
        metric: What of the objective's metrics counts, for a task.
        learning_rate: Peak, of AdamW.
        weight_decay: Of matrices.
        warmup_steps: Linear, before a cosine.
        batch_size: Items per step.
        max_items: Of each split; all by default.
    """

    objective: Part
    train: str
    steps: int
    val: str = ""
    metric: str = ""
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 20
    batch_size: int = 32
    max_items: int | None = None


@dataclass(frozen=True)
class Mode:
    """How a task trains a tower.

    Args:
        probe: The tower stays frozen.
        learning_rate: Instead of the task's.
        steps: Likewise.
    """

    probe: bool = False
    learning_rate: float | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Args:
        backbone: Of :attr:`Sweep.backbones`.
        pretraining: Of :attr:`Sweep.pretraining`.
        task: Of :attr:`Sweep.tasks`.
        mode: Of :attr:`Sweep.modes`.
        seed: Of initialisation, order and pretraining.
    """

    backbone: str
    pretraining: str
    task: str
    mode: str
    seed: int

    @property
    def name(self) -> str:
        """All of it in one word."""
        return "/".join([self.backbone, self.pretraining, self.task, self.mode, str(self.seed)])


@dataclass(frozen=True)
class Sweep:
    """The grid.

    Args:
        backbones: Name -> encoder.
        pretraining: Name -> how a tower begins; None is from scratch.
        tasks: Name -> task.
        modes: Name -> mode.
        seeds: Seeds.
    """

    backbones: Mapping[str, Part]
    pretraining: Mapping[str, Fit | None]
    tasks: Mapping[str, Fit]
    modes: Mapping[str, Mode]
    seeds: list[int] = field(default_factory=lambda: [0])

    def cells(self) -> list[Cell]:
        """All of it, tower by tower."""
        return [
            Cell(backbone, pretraining, task, mode, seed)
            for seed in self.seeds
            for backbone in self.backbones
            for pretraining in self.pretraining
            for task in self.tasks
            for mode in self.modes
        ]

    def fingerprint(self, cell: Cell) -> str:
        """A hash of every setting that decides what a cell measures."""
        before = self.pretraining[cell.pretraining]
        value = [self.backbones[cell.backbone], before and asdict(before), asdict(self.fit(cell)), cell.seed]
        value.append(self.modes[cell.mode].probe)
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

    def fit(self, cell: Cell) -> Fit:
        """The cell's task as its mode trains it."""
        task, mode = self.tasks[cell.task], self.modes[cell.mode]
        task = replace(task, learning_rate=task.learning_rate if mode.learning_rate is None else mode.learning_rate)
        return replace(task, steps=task.steps if mode.steps is None else mode.steps)


def read_sweep(path: str | Path) -> Sweep:
    """Read a grid.

    Raises:
        ValueError: For a file that is no such grid, naming the key, or a task without ``val`` and ``metric``.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Sweep, "sweep")
    try:
        typed = parser.parse_object({"sweep": yaml.safe_load(Path(path).read_text())})
        sweep = parser.instantiate(typed)["sweep"]
    except Exception as error:  # jsonargparse raises its own and the types' errors alike
        raise ValueError(f"'{path}': {error}") from error
    assert isinstance(sweep, Sweep)
    for name, task in sweep.tasks.items():
        if not task.val or not task.metric:
            raise ValueError(f"'{path}', task '{name}': expected val and metric, got {task.val!r} and {task.metric!r}")
    return sweep


def run_sweep(sweep: Sweep, out: Path, precision: str, progress: Callable[[str, bool], None]) -> dict[str, Any]:
    """Measure what is not measured yet.

    Args:
        sweep: The grid.
        out: Folder of ``results.json`` and of the pretrained towers.
        precision: Of the trainer.
        progress: Told what is being done, and whether it is a cell that is finished.

    Returns:
        Cell name -> ``{backbone, pretraining, task, mode, seed, value, seconds, fingerprint}``.
    """
    runner = _Runner(sweep, out, precision)
    for cell in sweep.cells():
        progress(cell.name, False)
        runner.measure(cell)
        progress(cell.name, True)
    return runner.results


class _Runner:
    def __init__(self, sweep: Sweep, out: Path, precision: str) -> None:
        self.sweep, self.out, self.precision = sweep, out, precision
        self.path = out / "results.json"
        self.results: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        known = {cell.name for cell in sweep.cells()}
        self.results = {name: value for name, value in self.results.items() if name in known}
        self.items: dict[str, dict[str, list[TowerItem]]] = {}

    def measure(self, cell: Cell) -> None:
        """Train and measure a cell, unless that was done with these settings."""
        fingerprint = self.sweep.fingerprint(cell)
        if self.results.get(cell.name, {}).get("fingerprint") == fingerprint:
            return
        started = perf_counter()
        tower = self._pretrained(cell)
        mode, fit = self.sweep.modes[cell.mode], self.sweep.fit(cell)
        with tempfile.TemporaryDirectory() as folder:
            metrics = self._train(cell, fit, Path(folder), tower, mode.probe)
        if fit.metric not in metrics:
            raise ValueError(f"task '{cell.task}': expected a metric of {sorted(metrics)}, got '{fit.metric}'")
        seconds = round(perf_counter() - started, 2)
        value = {"value": metrics[fit.metric], "seconds": seconds, "fingerprint": fingerprint}
        self.results[cell.name] = {**asdict(cell), **value}
        self.out.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps(self.results, indent=1) + "\n")
        partial.replace(self.path)

    def _pretrained(self, cell: Cell) -> Path | None:
        fit = self.sweep.pretraining[cell.pretraining]
        if fit is None:
            return None
        value = [self.sweep.backbones[cell.backbone], asdict(fit), cell.seed]
        own = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
        folder = self.out / "towers" / f"{cell.backbone}-{cell.pretraining}-{cell.seed}-{own}"
        if not (folder / TOWER_FILE).is_file():
            self._train(cell, fit, folder, None, probe=False)
        return folder / TOWER_FILE

    def _train(self, cell: Cell, fit: Fit, folder: Path, tower: Path | None, probe: bool) -> dict[str, float]:
        """One fit, and one validation where there is something to measure on: metric -> value."""
        L.seed_everything(cell.seed, verbose=False)
        encoder = _build(Encoder, self.sweep.backbones[cell.backbone])
        arguments = {"hidden_size": encoder.hidden_size, **fit.objective.get("init_args", {})}
        objective = _build(TowerObjective, {"class_path": fit.objective["class_path"], "init_args": arguments})
        recipe = TowerRecipe(
            encoder,
            objective,
            learning_rate=fit.learning_rate,
            weight_decay=fit.weight_decay,
            warmup_steps=fit.warmup_steps,
            seed=cell.seed,
            init_from=None if tower is None else str(tower),
            probe=probe,
        )
        data = self._data(recipe, fit, cell.seed)
        return fit_tower(recipe, data, fit.steps, folder, self.precision, measure=bool(fit.metric))

    def _data(self, recipe: TowerRecipe, fit: Fit, seed: int) -> TowerData:
        """The task's data, decoded once for all towers that see it alike."""
        plan = recipe.plan()
        data = TowerData(fit.train, fit.val or fit.train, fit.batch_size, fit.max_items, seed, plan)
        key = json.dumps([plan.processor.fingerprint(), repr(plan.target_rule), fit.train, fit.val, fit.max_items])
        data.items = self.items.setdefault(key, {} if fit.val else {"val": []})  # filled by its first setup
        return data


def _build(base: type[Any], part: Part) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "part")
    try:
        return parser.instantiate(parser.parse_object({"part": dict(part)}))["part"]
    except Exception as error:
        raise ValueError(f"{part.get('class_path')}: {error}") from error
