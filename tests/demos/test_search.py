"""``python -m demos.search`` on the tiny model of configs/debug/vectors.yaml."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from data.__main__ import main as data_main
from demos.search import main, read_items
from heads.embedding import ExactIndex
from models.build import build_generalist
from models.checkpoint import save_checkpoint

CONFIG = Path(__file__).parents[2] / "configs" / "debug" / "vectors.yaml"
ITEMS = {"lyon": "a city on the rhone", "oslo": "a city on a fjord", "france": "a country of cheese and wine"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    for line in CONFIG.read_text().splitlines():
        if line.startswith("#   python -m data "):
            command = line.replace("runs/debug", str(folder)).replace("configs/", f"{CONFIG.parents[1]}/")
            assert data_main(shlex.split(command)[4:]) == 0
    config = yaml.safe_load(CONFIG.read_text())["model"]["init_args"]["generalist"]
    config["tokenizer"] = str(folder / "vectors" / "tokenizer")
    torch.manual_seed(0)
    return save_checkpoint(build_generalist(config), config, folder / "checkpoint")


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps({"name": name, "text": text}) + "\n" for name, text in ITEMS.items()))
    return path


def test_items_are_indexed_once_and_found(
    checkpoint: Path, items: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "index.safetensors"
    command = ["--checkpoint", str(checkpoint), "--task", "entity", "--index", str(index), "--device", "cpu", "--json"]
    assert main([*command, "--items", str(items), ITEMS["oslo"]]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 3 and found[0]["score"] >= found[-1]["score"]
    saved = ExactIndex.load(index)
    assert saved.items == tuple(ITEMS)
    with items.open("a") as file:
        file.write('{"name": "norway", "text": "a country of fjords"}\n')
    assert main([*command, "--items", str(items)]) == 0
    assert "4 items of width 32" in capsys.readouterr().err
    assert torch.equal(ExactIndex.load(index).vectors[:3], saved.vectors)
    assert main([*command, "--top", "2", "--relation", "inverse of part of", ITEMS["france"]]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert main([*command[:-1], ITEMS["oslo"]]) == 0
    assert "score" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--task", "entity", "a"], "--items, or an --index that is there"),
        (["--task", "order", "--items", "ITEMS", "a"], "expected a head of vectors, got a PointerHead"),
        (["--task", "compare", "--items", "ITEMS", "--relation", "part of", "a"], "has no relations"),
        (["--task", "entity", "--items", "ITEMS", "--relation", "far from", "a"], "one of part of, capital of"),
        (["--task", "entity", "--items", "nowhere.jsonl", "a"], "nowhere.jsonl"),
    ],
)
def test_bad_requests_end_with_one_line(
    arguments: list[str], told: str, checkpoint: Path, items: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(items) if argument == "ITEMS" else argument for argument in arguments]
    assert main(["--checkpoint", str(checkpoint), "--device", "cpu", *given]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('{"text": "a"}', "line 1: expected an object with a name"),
        ('{"name": "a", "text": "a"}\n{"name": "a", "text": "b"}', "line 2: expected a new name"),
        ('{"name": "a"}', "line 1: expected a text, or a medium"),
        ("nothing", "line 1"),
    ],
)
def test_lines_that_are_no_items_are_named(lines: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(lines)
    with pytest.raises(ValueError, match=told):
        read_items(path)
