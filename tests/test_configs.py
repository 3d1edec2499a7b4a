"""Every shipped configuration: those on the quickstart's data run two steps, others are built on the meta device."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from transformers import CLIPConfig, LlamaConfig, Mask2FormerConfig, Qwen2Config, WavLMConfig, WhisperConfig

from data.__main__ import main as data_main
from data.datamodule import PackedDataModule
from eval.__main__ import main as eval_main
from models.build import build_generalist
from models.checkpoint import load_checkpoint
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskTable
from routers.vocabulary import task_tokens
from train import main as train_main
from training.optimizer import set_trainable
from training.quickstart import STAGES, TOWERS, phases

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RUN_HERE = {"quickstart", "debug", "heads", "regions", "sweeps", "benchmarks"}


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


# Recipes of real size, each with its folder's model.yaml where there is one; their bases, of two layers that have the
# released widths and no weights.
REAL_SIZE = ("graphgpt", "llava", "unifiedmllm", "uniperceiver", "wavllm")
RECIPES = [
    pytest.param([*([base] if (base := path.with_name("model.yaml")).exists() and path != base else []), path], id=name)
    for folder in REAL_SIZE
    for path in sorted((CONFIGS / folder).glob("*.yaml"))
    if (name := f"{folder}/{path.stem}") and path.stem != "model"
]
LLAMA = LlamaConfig(num_hidden_layers=2, dtype="bfloat16")
VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 16}
BASES = {
    "vicuna-7b-v1.5": LLAMA,
    "llama-2-7b-chat-hf": LLAMA,
    "qwen2.5-0.5b-instruct": Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=2,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "clip-vit-large-patch14-336": CLIPConfig(vision_config=VISION | {"image_size": 336, "patch_size": 14}),
    "whisper-large-v2": WhisperConfig(
        d_model=1280, encoder_layers=2, decoder_layers=1, encoder_attention_heads=20, decoder_attention_heads=20
    ),
    "wavlm-base": WavLMConfig(num_hidden_layers=2),
    "mask2former-swin-base-coco-instance": Mask2FormerConfig(encoder_layers=1, decoder_layers=2),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``checkpoints/``, in which every base is a configuration without weights."""
    folder = tmp_path_factory.mktemp("bases")
    for name, config in BASES.items():
        config.save_pretrained(folder / "checkpoints" / name)
    return folder


@pytest.mark.parametrize("files", RECIPES)
def test_recipes_of_real_size_are_whole(
    files: list[Path], bases: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parsed, built on the meta device, patterns resolved; what is missing is data, earlier stages and GPUs."""
    monkeypatch.chdir(bases)
    told = files[-1].read_text()
    assert all(f"\n# {word}" in f"\n{told}" for word in ("Hardware:", "Command", "Expected:"))
    for command in re.findall(r"--config (\S+)", told):
        assert (CONFIGS.parent / command).is_file(), command
    values = [yaml.safe_load(path.read_text()) for path in files]
    generalist = values[0]["model"]["init_args"].get("generalist")
    if generalist is not None:
        table = TaskTable.from_dict(generalist["tasks"])
        assert generalist["language_model"]["new_tokens"]["count"] == len(task_tokens(table))
        if not Path(generalist["tokenizer"]).exists():
            save_tokenizer(train_tokenizer(["a text"], 300, table), generalist["tokenizer"])
    arguments = [argument for path in files for argument in ("--config", str(path))]
    with pytest.raises(SystemExit) as ended:
        train_main(["fit", *arguments, "--dry_run"])
    words = " ".join(capsys.readouterr().out.split())
    problems = words.split("would not start: ")[1:]
    assert ended.value.code == (1 if problems else 0)
    allowed = ("is not there yet", "found none", "on a machine without a GPU")
    assert all(any(reason in problem for reason in allowed) for problem in problems), problems
    assert "parameter groups" in words


def test_every_config_is_covered_by_a_run_or_a_build(tmp_path: Path) -> None:
    quickstart = {path.stem for path in (CONFIGS / "quickstart").glob("*.yaml")}
    assert quickstart == {"model", *TOWERS, *STAGES}
    covered = {*RUN_HERE, "mixtures", *REAL_SIZE}
    for path in [p for p in CONFIGS.rglob("*.yaml") if p.relative_to(CONFIGS).parts[0] not in covered]:
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
