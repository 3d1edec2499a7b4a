"""Whatever ends a run, it says so, and the same command continues bit for bit."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from models.generalist import Generalist
from tests.tiny import training_arguments, write_shard
from train import main
from training.callbacks import find_resume_point
from training.faults import (
    FiniteGuard,
    NotFiniteError,
    NotSavedError,
    OutOfMemoryError,
    StoppedError,
    TrainingFaultError,
    explained,
)

STEPS = 5
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("shards"))


def arguments(root: Path, shard: Path, steps: int = STEPS, **interrupt: Any) -> list[str]:
    """A resume point every two steps, and perhaps an interruption."""
    given = training_arguments(root, shard, steps)
    if interrupt:
        path = root / "run.yaml"
        config = yaml.safe_load(path.read_text())
        own = {"class_path": "tests.training.resume.interruptions.Interrupt", "init_args": interrupt}
        config["trainer"]["callbacks"].append(own)
        path.write_text(yaml.safe_dump(config))
    return given


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shard: Path) -> dict[str, torch.Tensor]:
    root = tmp_path_factory.mktemp("whole") / "run"
    main(arguments(root, shard))
    return weights(root)


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "checkpoint" / "model.safetensors")


def step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=False)["global_step"])


def assert_continues(root: Path, shard: Path, whole: dict[str, torch.Tensor]) -> None:
    main(arguments(root, shard))
    found = weights(root)
    assert [name for name, value in whole.items() if not torch.equal(found[name], value)] == []


def test_a_signal_lets_the_step_end_and_saves_it(
    tmp_path: Path, shard: Path, whole: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError) as stopped:
        main(arguments(tmp_path / "run", shard, after_step=2, how="SIGTERM"))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step 3, which is saved" in stopped.value.message
    assert signal.getsignal(signal.SIGTERM) is before
    assert step_of(tmp_path / "run" / "last.ckpt") == 3 and step_of(tmp_path / "run" / "previous.ckpt") == 2
    assert_continues(tmp_path / "run", shard, whole)
    assert step_of(tmp_path / "run" / "last.ckpt") == STEPS  # the last step is saved too


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, shard: Path, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, root = torch.save, tmp_path / "run"

    def fill(checkpoint: Any, file: Any) -> None:
        if checkpoint["global_step"] < 4:
            return save(checkpoint, file)
        file.write(b"some of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)

    with monkeypatch.context() as patch, pytest.raises(NotSavedError, match=r"step 4: .*disk .* is full.*is intact"):
        patch.setattr(torch, "save", fill)
        main(arguments(root, shard))
    assert step_of(root / "last.ckpt") == 2 and not list(root.glob("*.partial"))
    assert_continues(root, shard, whole)


def test_a_loss_that_is_no_number_ends_the_run_and_is_not_saved(tmp_path: Path, shard: Path) -> None:
    root = tmp_path / "run"
    with pytest.raises(NotFiniteError, match=r"step 3: the gradient's norm is nan; .*token.*samples.*continues from"):
        main(arguments(root, shard, after_step=3, how="nan"))
    state = torch.load(root / "last.ckpt", weights_only=False)
    assert state["global_step"] == 2
    assert all(value.isfinite().all() for value in state["state_dict"].values() if value.is_floating_point())


def test_too_little_memory_says_how_large_the_step_was(
    tmp_path: Path, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(Generalist, "forward", forward)
    with pytest.raises(
        OutOfMemoryError, match=r"step 0: .*packs of \d+ tokens \(\d+ samples.*Nothing was saved before"
    ):
        main(arguments(tmp_path / "run", shard))


def test_a_dead_worker_is_named(tmp_path: Path, shard: Path) -> None:
    root = tmp_path / "run"
    with pytest.raises(TrainingFaultError, match=r"a data worker \(process \d+\) .*num_workers.*continues from"):
        main([*arguments(root, shard, after_step=2, how="worker"), "--data.init_args.num_workers=1"])
    assert step_of(root / "last.ckpt") in (2, 4)  # some steps were on their way already


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, shard: Path) -> None:
    root = tmp_path / "run"
    main([*arguments(root, shard), "--model.init_args.export=null"])
    content = (root / "last.ckpt").read_bytes()
    (root / "last.ckpt").write_bytes(content[: len(content) // 2])
    assert find_resume_point(root) == root / "previous.ckpt"
    (root / "previous.ckpt").write_bytes(b"")
    with pytest.raises(TrainingFaultError, match="only damaged ones"):
        find_resume_point(root)
    assert find_resume_point(tmp_path) is None


def test_a_guard_looks_now_and_then_where_the_device_works_ahead() -> None:
    guard = FiniteGuard(every_n_steps=3)
    good, bad = torch.tensor(1.0), torch.tensor(torch.inf)
    guard._seen.clear()
    for step, norm in enumerate((good, bad)):
        guard._seen += [type("Seen", (), {"step": step, "norm": norm, "sums": {"token": good}, "keys": ["a"]})()]
    with pytest.raises(
        NotFiniteError, match="step 1: the gradient's norm is inf; sums of the losses: token 1; samples"
    ):
        guard.check()
    guard.check()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.csv"), "the disk of 'x.csv' is full"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "out of memory: CUDA"),
        (MemoryError(), "out of memory"),
        (
            RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. It is possible that"),
            "a data worker (process 12) is killed by signal: Killed; if",
        ),
        (RuntimeError("DataLoader worker (pid(s) 1, 2) exited unexpectedly with exit code 1"), "(process 1, 2) exited"),
    ],
)
def test_errors_of_others_are_put_in_words(error: Exception, told: str) -> None:
    fault = explained(error)
    assert fault is not None and told in str(fault)
    wrapped = ValueError("while saving")
    wrapped.__cause__ = error
    assert told in str(explained(wrapped))
    assert explained(ValueError("expected one")) is None


@pytest.mark.slow
def test_killed_at_any_step_the_same_command_continues(tmp_path: Path, shard: Path) -> None:
    steps = 60
    command = [sys.executable, str(ROOT / "train.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    main(arguments(tmp_path / "whole", shard, steps))
    root, generator = tmp_path / "killed", random.Random(time.time_ns())
    given = arguments(root, shard, steps)
    for _ in range(3):
        process = subprocess.Popen([*command, *given], env=environment, stdout=subprocess.DEVNULL)
        seen, deadline = None, time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            last = root / "last.ckpt"
            if last.exists() and (stamp := last.stat().st_mtime_ns) != seen:
                if seen is not None:
                    break
                seen = stamp
            time.sleep(0.01)
        time.sleep(generator.random() / 2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run([*command, *given], env=environment, check=False).returncode == 0
    found, wanted = weights(root), weights(tmp_path / "whole")
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path: Path, shard: Path) -> None:
    """A file system as large as two checkpoints; the third does not fit."""
    main([*arguments(tmp_path / "sized", shard, 2), "--model.init_args.export=null"])
    size, place = (tmp_path / "sized" / "last.ckpt").stat().st_size, tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={int(size * 2.6)}", "tmpfs", str(place)], check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount")
    try:
        result = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *arguments(place / "run", shard, 8)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 1
        assert "is full" in result.stderr and "is intact" in result.stderr and "Traceback" not in result.stderr
        assert step_of(place / "run" / "last.ckpt") in (4, 6)
    finally:
        subprocess.run(["umount", str(place)], check=True)
