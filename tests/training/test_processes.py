"""Many processes equal one: gradients, norms and weights, whatever each of them has in its packs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_tokenizer
from tests.training.distributed import train_steps
from tests.training.ranks import run_ranks

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
