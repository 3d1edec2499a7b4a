from __future__ import annotations

import pytest
import torch

from training import precision


@pytest.mark.parametrize(("bf16", "expected"), [(400.0, "bf16-mixed"), (9.0, "32-true")])
def test_the_faster_format_is_chosen_on_a_cpu(bf16: float, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "_measure", lambda dtype, seconds: bf16 if dtype == torch.bfloat16 else 100.0)
    speed = precision.choose_precision()
    assert speed.precision == expected
    assert speed.best_gflops == max(bf16, 100.0)
    assert "fp32 100 GFLOP/s" in speed.reason


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "32-true"), ((8, 0), "bf16-mixed"), ((9, 0), "bf16-mixed")]
)
def test_on_a_gpu_the_capability_decides(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    speed = precision.choose_precision()
    assert speed.precision == expected
    assert speed.best_gflops is None


def test_the_measurement_takes_a_moment_and_finds_a_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert precision._measure(torch.float32, 0.05) > 0.1
