"""Many processes equal one: gradients, norms and weights, whatever each of them has in its packs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from safetensors.torch import load_file

from models.checkpoint import load_checkpoint
from models.touch import touch
from tests.tiny import tiny_tokenizer, training_arguments, write_shard
from tests.training.processes.distributed import run_train, show_parts, train_steps
from tests.training.processes.ranks import free_port, run_ranks
from train import main
from training.processes.strategies import FullyShardedStrategy, check_strategy

MUON = {r"^language_model\..*\.layers\.": 0.02, r"^projectors\.": 0.02, r"^heads\..*(layers|query|key)": 0.02}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    tiny_tokenizer(folder / "tokenizer")
    return folder


def results(folder: Path, name: str) -> list[Any]:
    found: list[Any] = torch.load(folder / f"{name}.pt")
    return found


def assert_equal(found: list[Any], wanted: list[Any], tolerance: float) -> None:
    """Gradients relative to each parameter's largest; the optimizer's state is in the weights after the last step."""
    for own, others in zip(found[0], wanted[0], strict=True):
        for name in {*own, *others}:
            gradient = own.get(name, torch.zeros(()))
            other = others.get(name, torch.zeros(()))
            scale = float(other.abs().max()) if name in others else 0.0
            difference = float((gradient - other).abs().max())
            assert difference <= tolerance * max(scale, 1e-3), f"{name}: {difference} of {scale}"
    assert found[1] == pytest.approx(wanted[1], rel=tolerance)
    for name, weight in wanted[2].items():
        torch.testing.assert_close(found[2][name], weight, atol=10 * tolerance, rtol=0, msg=name)


def test_two_processes_of_ddp_equal_one(folder: Path) -> None:
    train_steps(folder, "one", "auto", 1, 4, in_double=True, muon=MUON)
    run_ranks(train_steps, 2, folder, "ddp", "ddp", 2, 4, in_double=True, muon=MUON)
    assert_equal(results(folder, "ddp"), results(folder, "one"), 1e-9)


def test_two_processes_of_fsdp2_equal_one(folder: Path) -> None:
    """The first process has two packs and the other one; some layers' rows do not divide by two."""
    train_steps(folder, "single", "auto", 1, 3, in_double=True, muon=MUON)
    run_ranks(train_steps, 2, folder, "fsdp2", "fsdp2", 2, 3, in_double=True, muon=MUON)
    assert_equal(results(folder, "fsdp2"), results(folder, "single"), 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("in_double", [True, False])
def test_four_processes_of_which_none_has_what_another_has(folder: Path, strategy: str, in_double: bool) -> None:
    """Images alone, text alone, graphs alone, and a head batch that is empty; two rounds of each."""
    more: dict[str, Any] = {"in_double": in_double, "muon": MUON, "steps": 2 if in_double else 1}
    train_steps(folder, "alone", "auto", 1, 8, **more)
    run_ranks(train_steps, 4, folder, "four", strategy, 4, 8, **more)
    assert_equal(results(folder, "four"), results(folder, "alone"), 1e-9 if in_double else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("trainable", "shard_frozen"), [(["."], False), (["^projectors"], False), (["^heads"], True)])
def test_what_is_trained_is_sharded_and_the_rest_whole(folder: Path, trainable: list[str], shard_frozen: bool) -> None:
    run_ranks(show_parts, 2, folder, trainable, shard_frozen)
    sharded, units, trained = results(folder, "parts")
    assert {name for name, is_sharded in sharded.items() if is_sharded} == (set(sharded) if shard_frozen else trained)
    layers = [name for name in units if ".layers." in name]
    assert len(layers) == (2 if trainable == ["."] or shard_frozen else 0) and "" in units


def of(root: Path, shard: Path, steps: int, processes: int, *more: str, **init_args: Any) -> list[str]:
    """A command line with four packs per step, over processes that exist already."""
    given = training_arguments(root, shard, steps, **init_args)
    many = [f"--trainer.devices={processes}"] if processes > 1 else []
    return [*given, "--data.init_args.packs_per_step=4", *many, *more]


def exported(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "checkpoint" / "model.safetensors")


def assert_close(found: Path, wanted: Path, tolerance: float = 1e-5) -> None:
    own, other = exported(found), exported(wanted)
    assert own.keys() == other.keys()
    for name, value in other.items():
        if name.endswith(("key.bias", "k_proj.bias")):
            continue  # no loss depends on them: AdamW makes steps of whatever rounding leaves
        torch.testing.assert_close(own[name], value, atol=tolerance, rtol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("one_file", [True, False])
def test_fsdp2_exports_validates_averages_and_resumes_like_one_process(tmp_path: Path, one_file: bool) -> None:
    """On two processes, then on four; with recomputed layers, an average and an odd number of validation packs."""
    shard = write_shard(tmp_path / "shards", copies=3)
    validation = [f"--data.init_args.val_sources=[{{path: {shard}}}]", "--trainer.limit_val_batches=1.0"]
    validation += [
        "--trainer.val_check_interval=2",
        "--trainer.num_sanity_val_steps=0",
        "--trainer.log_every_n_steps=1",
    ]
    named: dict[str, Any] = {"average_decay": 0.9, "acceleration": {"recomputed": ["^language_model"]}}
    # The run that stops is short by its number of batches, and so is its cosine: until it stops, rates must rise alone.
    named |= {"learning_rate": 1e-4, "warmup_steps": 3}
    main(of(tmp_path / "one", shard, 6, 1, *validation, **named))
    sharding = [
        "--trainer.strategy=training.processes.strategies.FullyShardedStrategy",
        f"--trainer.strategy.save_distributed_checkpoint={not one_file}",
    ]
    root = tmp_path / "many"
    short = ["--trainer.limit_train_batches=3", "--trainer.max_epochs=1", "--model.init_args.export=null"]
    run_ranks(run_train, 2, of(root, shard, 6, 2, *sharding, *validation, *short, **named))
    assert (root / "last.ckpt").is_dir() != one_file
    run_ranks(run_train, 4, of(root, shard, 6, 4, *sharding, *validation, **named))
    assert_close(root, tmp_path / "one")
    manifests = [json.loads((tmp_path / n / "checkpoint" / "manifest.json").read_text()) for n in ("one", "many")]
    assert manifests[0]["aliases"] == manifests[1]["aliases"] and manifests[0]["tensors"] == manifests[1]["tensors"]
    assert (
        load_checkpoint(root / "checkpoint").plan().hash == load_checkpoint(tmp_path / "one" / "checkpoint").plan().hash
    )
    one, many = (_column(tmp_path / name, "val/token") for name in ("one", "many"))
    assert len(one) == 3 and many == pytest.approx(one, rel=1e-4)
    one, many = (_column(tmp_path / name, "train/loss_token") for name in ("one", "many"))
    assert len(one) == 6 and many == pytest.approx(one, rel=1e-4)


def _column(root: Path, name: str) -> list[float]:
    """What was logged under a name, over all versions of the run."""
    found = []
    for path in sorted((root / "csv").glob("*/metrics.csv")):
        header, *rows = (line.split(",") for line in path.read_text().splitlines())
        found += [float(row[header.index(name)]) for row in rows if name in header and row[header.index(name)]]
    return found


@pytest.mark.slow
def test_mixed_precision_under_fsdp2_is_close_to_ddp(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "shards")
    for strategy in ("ddp", "fsdp2"):
        more = [f"--trainer.strategy={strategy}", "--trainer.precision=bf16-mixed"]
        run_ranks(run_train, 2, of(tmp_path / strategy, shard, 3, 2, *more, learning_rate=1e-4))
    assert_close(tmp_path / "fsdp2", tmp_path / "ddp", 1e-3)


@pytest.mark.slow
def test_two_nodes_meet(tmp_path: Path) -> None:
    """Two agents of torchrun on this machine, a process each, as on two nodes."""
    shard, port = write_shard(tmp_path / "shards"), free_port()
    main(of(tmp_path / "one", shard, 3, 1))
    given = of(tmp_path / "two", shard, 3, 1, "--trainer.devices=1", "--trainer.num_nodes=2", "--trainer.strategy=ddp")
    meet = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    agent = [sys.executable, "-m", "torch.distributed.run", *meet, "--rdzv-id=1", "--local-addr=127.0.0.1", "train.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    nodes = [subprocess.Popen([*agent, *given], env=environment, cwd=Path(__file__).parents[3]) for _ in range(2)]
    assert [node.wait(300) for node in nodes] == [0, 0]
    assert_close(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_the_same_command_continues(tmp_path: Path) -> None:
    """The processes are started by Lightning; only the first hears the signal."""
    shard, steps = write_shard(tmp_path / "shards"), 40
    more = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(root: Path) -> subprocess.Popen[str]:
        given = of(root, shard, steps, 1, *more)
        command = [sys.executable, str(Path(__file__).parents[3] / "train.py"), *given]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    assert start(tmp_path / "whole").wait(300) == 0
    process = start(tmp_path / "stopped")
    deadline = time.monotonic() + 120
    while not (tmp_path / "stopped" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "stopped by SIGTERM after step" in output
    assert start(tmp_path / "stopped").wait(300) == 0
    found, wanted = exported(tmp_path / "stopped"), exported(tmp_path / "whole")
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def deepspeed(stage: int) -> DeepSpeedStrategy:
    """A strategy as Lightning makes it where DeepSpeed is installed."""
    strategy = object.__new__(DeepSpeedStrategy)
    strategy.config = {"zero_optimization": {"stage": stage}}
    return strategy


@pytest.mark.parametrize(
    ("strategy", "more", "message"),
    [
        (FSDPStrategy(), {}, "trainer.strategy: expected ddp, fsdp2, .*got FSDPStrategy"),
        (ModelParallelStrategy(1, 2), {}, "expected tensor_parallel_size 1, got 2"),
        (deepspeed(3), {}, "expected DeepSpeed's ZeRO stage 1 or 2, got 3; use fsdp2"),
        (deepspeed(2), {"uses_muon": True}, "model.init_args.muon: DeepSpeed cuts matrices"),
        (FullyShardedStrategy(shard_frozen=True), {"keeps_features": True}, "model.init_args.features: .*shard_frozen"),
        (DDPStrategy(), {"precision": "16-mixed"}, "trainer.precision: expected bf16-mixed, .*got 16-mixed"),
    ],
)
def test_what_the_recipe_cannot_train_with_is_refused(strategy: Any, more: dict[str, Any], message: str) -> None:
    trainer: Any = SimpleNamespace(strategy=strategy, precision=more.get("precision", "32-true"))
    with pytest.raises(ValueError, match=message):
        check_strategy(trainer, more.get("uses_muon", False), more.get("keeps_features", False), 1.0)


def test_deepspeed_clips_to_the_recipes_norm() -> None:
    strategy = deepspeed(2)
    strategy.config["gradient_clipping"] = 0.0  # as Lightning sets it, from a trainer that clips nothing
    trainer: Any = SimpleNamespace(strategy=strategy, precision="bf16-mixed")
    check_strategy(trainer, uses_muon=False, keeps_features=False, max_grad_norm=0.5)
    assert strategy.config == {"zero_optimization": {"stage": 2}, "gradient_clipping": 0.5}


def test_a_touch_visits_or_gives_zeros() -> None:
    used, unused, frozen = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    for zeros in (False, True):
        used.grad = unused.grad = None
        (used * 2 + touch([used, unused, frozen], used, zeros)).sum().backward()
        assert used.grad is not None and used.grad.tolist() == [2.0, 2.0] and frozen.grad is None
        assert (unused.grad is not None and not unused.grad.any()) if zeros else unused.grad is None
