"""Every shipped configuration: those on the quickstart's data run two steps, others are built on the meta device."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from data.__main__ import main as data_main
from data.datamodule import PackedDataModule
from eval.__main__ import main as eval_main
from models.build import build_generalist
from models.checkpoint import load_checkpoint
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskTable
from train import main as train_main
from training.optimizer import set_trainable
from training.quickstart import STAGES, TOWERS, phases

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RUN_HERE = {"quickstart", "debug", "heads", "regions", "sweeps"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a hundredth of the quickstart's data and its tokenizer."""
    run = tmp_path_factory.mktemp("run")
    commands = {phase.name: phase.commands for phase in phases(run, 0, 0.01, "32-true")}
    for phase in ("data", "tokenizer"):
        assert data_main(list(commands[phase][0][3:])) == 0
    return run


def test_the_quickstart_in_two_steps_per_stage(run: Path) -> None:
    planned = {phase.name: phase for phase in phases(run, 0, 0.01, "32-true")}
    quick = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    for name in (*TOWERS, *STAGES):
        here = ["--data.init_args.num_workers=0"] if name in STAGES else []
        train_main([*planned[name].commands[0][2:], *quick, *here])
    checkpoint = run / "stage2_instruction" / "checkpoint"
    generalist = load_checkpoint(checkpoint)
    assert all(parameter.isfinite().all() for parameter in generalist.parameters())
    predict = ["predict", "--checkpoint", str(checkpoint), "--data", str(run / "data"), "--split", "test"]
    out = run / "predictions.jsonl"
    assert eval_main([*predict, "--benchmark", "box,asr,link", "--limit", "2", "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 1 + 3 * 2


ALONE = sorted(path for folder in ("debug", "heads", "regions") for path in (CONFIGS / folder).glob("*.yaml"))


@pytest.mark.parametrize("path", ALONE, ids=lambda path: path.stem)
def test_configs_of_one_file_run_two_steps(run: Path, tmp_path: Path, path: Path) -> None:
    config = tmp_path / path.name
    text = path.read_text().replace("runs/quickstart", str(run))
    text = re.sub(r"runs/(debug|heads|regions)\b", str(tmp_path), text)
    config.write_text(text)
    for command in re.findall(r"^#   python -m data (.*)", text, flags=re.MULTILINE):  # data of its own
        assert data_main(shlex.split(command.replace("configs/", f"{CONFIGS}/"))) == 0
    quick = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    train_main(["fit", "--config", str(config), *quick])
    assert list(tmp_path.rglob("tower.safetensors" if path.parent.name == "regions" else "model.safetensors"))


def test_the_sweep_of_backbones(run: Path, tmp_path: Path) -> None:
    """Every backbone, from scratch and after two steps of pretraining, probed by two steps of one of the tasks."""
    grid = yaml.safe_load((CONFIGS / "sweeps" / "backbones.yaml").read_text().replace("runs/quickstart", str(run)))
    assert {task["metric"] for task in grid["tasks"].values()} <= {
        "digit_accuracy",
        "colour_accuracy",
        "box_iou",
        "count_accuracy",
    }
    grid["tasks"] = {"colours": grid["tasks"]["colours"]}
    del grid["pretraining"]["supervised"], grid["modes"]["fine_tune"]
    for fit in (*grid["tasks"].values(), *filter(None, grid["pretraining"].values())):
        fit.update(steps=2, batch_size=8)
    config, out = tmp_path / "grid.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump(grid))
    assert eval_main(["sweep", "--config", str(config), "--out", str(out), "--precision", "32-true"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert len(results) == 4 * 2 and "Do the tasks agree?" in (out / "page.html").read_text()


def test_every_config_is_covered_by_a_run_or_a_build(tmp_path: Path) -> None:
    quickstart = {path.stem for path in (CONFIGS / "quickstart").glob("*.yaml")}
    assert quickstart == {"model", *TOWERS, *STAGES}
    others = [p for p in CONFIGS.rglob("*.yaml") if p.relative_to(CONFIGS).parts[0] not in {*RUN_HERE, "mixtures"}]
    for path in others:
        config = yaml.safe_load(path.read_text())["model"]["init_args"]
        table = TaskTable.from_dict(config["generalist"]["tasks"])
        save_tokenizer(train_tokenizer(["the words of a tokenizer"] * 4, 300, table), tmp_path)
        config["generalist"]["tokenizer"] = str(tmp_path)
        with torch.device("meta"):
            generalist = build_generalist(config["generalist"])
        set_trainable(generalist, config["trainable"])


@pytest.mark.parametrize("path", sorted((CONFIGS / "mixtures").glob("*.yaml")), ids=lambda path: path.stem)
def test_mixtures_are_data_modules(path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PackedDataModule, "data")
    module = parser.instantiate_classes(parser.parse_object(yaml.safe_load(path.read_text()))).data
    assert module.sources and "https://arxiv.org/abs/" in path.read_text()
    names = {source.title for source in module.sources}
    assert all(set(stage.weights) <= names for stage in module.mixture.curriculum)
