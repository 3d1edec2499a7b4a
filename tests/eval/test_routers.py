"""Two routers of one checkpoint in one table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data.records import Part
from eval.__main__ import main
from eval.benchmarks import lookup
from eval.benchmarks.quickstart import quickstart_benchmarks
from eval.log import LogError, PredictionLog, read_log
from eval.routers import compare_routers
from models.build import build_generalist
from models.checkpoint import save_checkpoint
from tests.eval.conftest import answer_sample, call_sample, write_shards
from tests.tiny import TASKS, tiny_config


@pytest.fixture(scope="module", autouse=True)
def _no_catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The routing benchmark is not of the catalogue, which need not be read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "CATALOG", tmp_path_factory.mktemp("catalog"))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose router always calls, and data whose replies should call."""
    root = tmp_path_factory.mktemp("routers")
    tasks = [task["name"] for task in TASKS["tasks"]]
    router = {"class_path": "routers.learned.LearnedRouter", "init_args": {"state_size": 32, "tasks": tasks}}
    config = {**tiny_config(root), "router": router}
    torch.manual_seed(0)
    generalist = build_generalist(config)
    with torch.no_grad():
        generalist.router.classify[-1].bias[1 + tasks.index("seg")] = 50.0
    save_checkpoint(generalist, config, root / "checkpoint")
    calls = [Part("call", task="seg", prompt="red 7")]
    write_shards(root, "test", "routing", [call_sample("routing", index, calls) for index in range(3)])
    write_shards(root, "test", "image_qa", [answer_sample("image_qa", 0, "1")])
    return root


@pytest.fixture(scope="module")
def logs(folder: Path) -> dict[str, Path]:
    """What the checkpoint answers with its own router, and with markers."""
    common = ["--checkpoint", str(folder / "checkpoint"), "--data", str(folder), "--device", "cpu"]
    logs = {"LearnedRouter": folder / "learned.jsonl", "markers": folder / "markers.jsonl"}
    for name, path in logs.items():
        flags = ["--markers"] if name == "markers" else []
        asked = ["predict", *common, "--benchmark", "routing", "--max-new-tokens", "4", "--out", str(path), *flags]
        assert main(asked) == 0
    return logs


def test_routers_of_one_checkpoint_in_one_table(logs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for name, path in logs.items():
        opened = [row.raw.startswith("<seg>") for row in read_log(path).predictions]
        assert all(opened) == (name == "LearnedRouter"), "the log shows which of the two decided"
    assert main(["routers", *map(str, logs.values())]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in logs) and "parse failures" in table and "all calls right" in table


def test_scores_are_those_of_the_benchmark(folder: Path, logs: dict[str, Path]) -> None:
    benchmark = quickstart_benchmarks(folder, "test", ["routing"])["routing"]
    (row,) = compare_routers([logs["markers"]])
    expected = benchmark.score(read_log(logs["markers"]).predictions)
    assert row.scores["routing_f1"].value == expected["routing_f1"].value
    assert (row.router, row.constrained, row.scores["parse_failure"].n) == ("markers", False, 3)


def test_a_log_without_routing_is_refused(logs: dict[str, Path], tmp_path: Path) -> None:
    header = read_log(logs["markers"]).header
    with PredictionLog(tmp_path / "empty.jsonl", header):
        pass
    with pytest.raises(LogError, match="expected a log of the benchmark 'routing' without control"):
        compare_routers([tmp_path / "empty.jsonl"])
