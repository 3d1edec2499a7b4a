"""Balanced gradients: the formula by hand, what it does not depend on, and the recipe that uses it."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tiny import training_arguments, write_shard
from train import main
from training.balance import Balance, BalancedAdamW

RATE, DECAY, BETA1, BETA2, EPS = 0.01, 0.1, 0.9, 0.98, 1e-8


def by_hand(values: list[float], steps: list[tuple[list[float], float, float]]) -> list[float]:
    """Two scalars through the paper's update, whose betas are the shares of what is new."""
    new1, new2 = 1 - BETA1, 1 - BETA2
    m, n = [0.0, 0.0], [0.0, 0.0]
    for t, (gradient, s, omega) in enumerate(steps, start=1):
        norm = (gradient[0] ** 2 + gradient[1] ** 2) ** 0.5
        for i in range(2):
            g = omega * gradient[i] / norm
            m[i] = (1 - new1) * m[i] + new1 / s * g
            n[i] = (1 - new2) * n[i] + new2 / s * g**2
            unbiased_m, unbiased_n = m[i] / (1 - BETA1**t), n[i] / (1 - BETA2**t)
            values[i] -= RATE * DECAY * values[i]
            values[i] -= RATE * unbiased_m / (unbiased_n**0.5 + EPS)
    return values


def test_equals_the_formula_by_hand() -> None:
    first, second = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (0.5, -2.0))
    groups = [{"params": [first], "lr": RATE, "weight_decay": DECAY}, {"params": [second], "lr": RATE}]
    groups[1]["weight_decay"] = DECAY
    optimizer = BalancedAdamW(groups, (BETA1, BETA2), EPS)
    steps = [([3.0, 4.0], 0.25, 1.0), ([-0.002, 0.001], 0.75, 2.0), ([50.0, -20.0], 0.25, 1.0), ([0.1, 0.1], 0.75, 2.0)]
    for gradient, probability, weight in steps:
        for parameter, value in zip((first, second), gradient, strict=True):
            parameter.grad = torch.tensor(value, dtype=torch.float64)
        optimizer.set_task(probability, weight)
        optimizer.step()
    expected = by_hand([0.5, -2.0], steps)
    torch.testing.assert_close(
        torch.stack([first, second]).detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
    )


def run(network: nn.Module, scales: tuple[float, float], steps: int, optimizer: BalancedAdamW, first: int = 0) -> None:
    for step in range(first, first + steps):
        task = step % 3 == 0
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        loss = (network(inputs) - (inputs.sum(-1, keepdim=True) if task else 1.0)).square().mean()
        optimizer.zero_grad()
        (loss * scales[task]).backward()
        optimizer.set_task(1 / 3 if task else 2 / 3)
        optimizer.step()


def optimizer_of(network: nn.Module) -> BalancedAdamW:
    return BalancedAdamW([{"params": list(network.parameters()), "lr": 0.01, "weight_decay": 0.0}])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def test_the_scale_of_a_loss_changes_nothing() -> None:
    plain, scaled = network(), network()
    run(plain, (1.0, 1.0), 9, optimizer_of(plain))
    run(scaled, (1e-2, 1e3), 9, optimizer_of(scaled))
    for mine, other in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)
    assert not torch.equal(next(plain.parameters()), next(network().parameters()))


def test_continues_from_its_state_exactly() -> None:
    whole, half = network(), network()
    run(whole, (1.0, 1.0), 6, optimizer_of(whole))
    before = optimizer_of(half)
    run(half, (1.0, 1.0), 3, before)
    after = optimizer_of(half)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    run(half, (1.0, 1.0), 3, after, first=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters(), strict=True))


def test_a_task_has_to_be_named_before_every_step() -> None:
    layer = network()
    optimizer = optimizer_of(layer)
    run(layer, (1.0, 1.0), 1, optimizer)
    with pytest.raises(RuntimeError, match="expected set_task before every step"):
        optimizer.step()
    with pytest.raises(ValueError, match="expected above 0, at most 1, got 0"):
        optimizer.set_task(0.0)
    with pytest.raises(ValueError, match=r"balance.weights\['a'\]: expected above 0, got -1"):
        Balance({"a": -1.0})


def arguments(tmp_path: Path, *, unmixed: bool, weights: dict[str, float], **more: object) -> list[str]:
    shard = write_shard(tmp_path / "shards", copies=3)
    given = training_arguments(tmp_path / "run", shard, 3, balance={"weights": weights}, export=None, **more)
    sources = [{"path": str(shard), "tasks": list(tasks), "name": tasks[0]} for tasks in (("text",), ("box", "mask"))]
    return [*given, f"--data.init_args.sources={sources}", f"--data.init_args.mixture.unmixed={unmixed}"]


def test_the_recipe_balances_the_sources_of_unmixed_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, float]] = []
    original = BalancedAdamW.set_task

    def noted(self: BalancedAdamW, probability: float, weight: float = 1.0) -> None:
        told.append((probability, weight))
        original(self, probability, weight)

    monkeypatch.setattr(BalancedAdamW, "set_task", noted)
    cli = main([*arguments(tmp_path, unmixed=True, weights={"box": 3.0}), "--data.init_args.max_tokens=64"])
    shares = {weight: probability for probability, weight in told}
    assert len(told) == 3 and set(shares) <= {1.0, 3.0}
    assert len(shares) < 2 or sum(shares.values()) == pytest.approx(1.0)
    state = cli.trainer.optimizers[0].state
    assert all(entry["exp_avg"].isfinite().all() for entry in state.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unmixed": False, "weights": {}}, "balance: expected data.init_args.mixture.unmixed: true"),
        ({"unmixed": True, "weights": {"boxes": 2.0}}, r"balance.weights: expected sources .*got \['boxes'\]"),
        ({"unmixed": True, "weights": {}, "muon": {"layers": 0.02}}, "expected no model.init_args.muon beside it"),
    ],
)
def test_what_cannot_be_balanced_is_refused_before_the_first_step(tmp_path: Path, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(arguments(tmp_path, **options))
