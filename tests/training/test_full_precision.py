"""Modules that stay in fp32 while the rest is autocast."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from training.callbacks import FullPrecision


class _Model(nn.Module):
    """Two layers; remembers in which dtype each computed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4))
        self.second = nn.Sequential(nn.Linear(4, 4))

    device = torch.device("cpu")


def _wrapped(modules: list[str], device_types: tuple[str, ...] = ("cpu",)) -> _Model:
    model: Any = _Model()
    FullPrecision(modules, device_types).on_fit_start(SimpleNamespace(), model)  # type: ignore[arg-type]
    return model


def test_a_named_module_computes_in_fp32_and_the_rest_does_not() -> None:
    model, x = _wrapped(["^second"]), torch.randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.first(x)
        full = model.second(half)
        after = model.first(full)
    assert (half.dtype, full.dtype, after.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert torch.equal(full, model.second(half.float()))


def test_autocast_goes_on_after_a_module_has_raised() -> None:
    model = _wrapped(["^second"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(RuntimeError):
            model.second(torch.randn(3, 5))
        assert model.first(torch.randn(3, 4)).dtype == torch.bfloat16


def test_without_autocast_double_stays_double() -> None:
    model = _wrapped(["^second"]).double()
    assert model.second(torch.randn(3, 4, dtype=torch.float64)).dtype == torch.float64


def test_other_devices_are_left_alone_and_patterns_must_match() -> None:
    model = _wrapped(["^second"], device_types=("cuda",))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.second(torch.randn(3, 4)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"pattern '\^third' matches no module"):
        _wrapped(["^third"])
