"""Muon beside AdamW, and who gets which."""

import copy

import pytest
import torch
from torch import nn

from training.muon import JORDAN, MINIMAX, MuonAdamW, orthogonalise
from training.optimizer import parameter_groups


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 10), nn.LayerNorm(10))


def _step(network: nn.Module, *optimizers: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(5, 6, generator=generator).to(next(network.parameters()))
    network(inputs).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def test_orthogonalise_keeps_the_singular_vectors() -> None:
    matrix = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    for given, found in ((matrix, orthogonalise(matrix, dtype=torch.float64)), (matrix.mT, None)):
        found = orthogonalise(given, dtype=torch.float64) if found is None else found
        found = found.mT if found.shape[-2] > found.shape[-1] else found
        inner = u.mT @ found @ vh.mT
        singular = inner.diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(inner, torch.diag_embed(singular), atol=1e-9, rtol=0)
        assert 0.8 < singular.min() and singular.max() < 1.2


def test_four_minimax_quintics_come_closer_to_one_than_five_of_jordans() -> None:
    values = torch.logspace(-2.5, 0, 400, dtype=torch.float64)

    def farthest(quintics: tuple[tuple[float, float, float], ...]) -> float:
        x = values.clone()
        for a, b, c in quintics:
            x = a * x + b * x**3 + c * x**5
        return float((x - 1).abs().max())

    assert farthest(MINIMAX) < 0.2 < 0.3 < farthest(JORDAN)


@pytest.mark.parametrize("rank", [1, 2, 8])
def test_sixteen_bits_stay_in_bounds_whatever_the_rank(rank: int) -> None:
    torch.manual_seed(0)
    updates = torch.randn(50, 128, rank) @ torch.randn(50, rank, 128)
    found = torch.linalg.svdvals(orthogonalise(updates, dtype=torch.bfloat16).float())[:, :rank]
    assert 0.75 < found.min() and found.max() < 1.25


def test_equals_torch_muon_and_torch_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two optimizers of torch's own side by side; torch orthogonalises in bfloat16, which is made float64 here."""
    monkeypatch.setattr(torch, "bfloat16", torch.float64)
    ours, theirs = _network().double(), _network().double()
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    others = [p for p in theirs.parameters() if p.ndim < 2]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1)
    adamw = torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
    groups = parameter_groups(ours, 1e-3, {}, 0.1, {"weight": 0.02})
    optimizer = MuonAdamW(groups, quintics=JORDAN, dtype=torch.float64)
    for seed in range(4):
        _step(ours, optimizer, seed=seed)
        _step(theirs, muon, adamw, seed=seed)
    for (name, mine), their in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, their, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
        assert (mine - _network().double().get_parameter(name)).abs().max() > 1e-3


def test_continues_from_its_state_exactly() -> None:
    whole, half = _network(), _network()
    one = MuonAdamW(parameter_groups(whole, 1e-3, {}, 0.1, {"weight": 0.02}))
    two = MuonAdamW(parameter_groups(half, 1e-3, {}, 0.1, {"weight": 0.02}))
    for seed in range(2):
        _step(whole, one, seed=seed)
        _step(half, two, seed=seed)
    resumed = copy.deepcopy(half)
    three = MuonAdamW(parameter_groups(resumed, 1e-3, {}, 0.1, {"weight": 0.02}))
    three.load_state_dict(copy.deepcopy(two.state_dict()))
    for seed in range(2, 4):
        _step(whole, one, seed=seed)
        _step(resumed, three, seed=seed)
    for mine, their in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, their)


def test_a_convolution_moves_like_the_matrix_of_its_output_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, gradient = torch.randn(6, 3, 2, 2, generator=generator), torch.randn(6, 3, 2, 2, generator=generator)
    convolution, matrix = nn.Parameter(weight.clone()), nn.Parameter(weight.flatten(1).clone())
    for parameter in (convolution, matrix):
        parameter.grad = gradient.reshape(parameter.shape).clone()
        MuonAdamW([{"params": [parameter], "lr": 0.02, "weight_decay": 0.1, "muon": True}]).step()
    assert torch.equal(convolution.flatten(1), matrix) and not torch.equal(convolution, weight)


def test_a_schedule_reaches_both() -> None:
    network = _network()
    optimizer = MuonAdamW(parameter_groups(network, 1e-3, {}, 0.1, {"weight": 0.02}))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = copy.deepcopy(network)
    _step(network, optimizer, seed=0)
    for mine, old in zip(network.parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, old)


def test_who_gets_which() -> None:
    network = nn.ModuleDict({"embed": nn.Embedding(4, 3), "layers": nn.Linear(3, 3), "conv": nn.Conv1d(3, 3, 3)})
    groups = parameter_groups(network, 1e-3, {"conv": 2e-3}, 0.1, {"embed|layers|conv": 0.02})
    found = {id(p): group for group in groups for p in group["params"]}
    assert found[id(network["layers"].weight)] | {"params": []} == {
        "params": [],
        "lr": 0.02,
        "weight_decay": 0.1,
        "muon": True,
    }
    for parameter in (network["embed"].weight, network["conv"].bias, network["layers"].bias):
        assert not found[id(parameter)]["muon"]
    assert found[id(network["conv"].bias)]["lr"] == 2e-3 and found[id(network["conv"].weight)]["muon"]
    with pytest.raises(ValueError, match=r"muon\['nothing'\]: matches no parameter that is trained"):
        parameter_groups(network, 1e-3, {}, 0.1, {"nothing": 0.02})
    with pytest.raises(ValueError, match=r"Muon: expected matrices, got a parameter of shape \(3,\)"):
        MuonAdamW([{"params": [network["layers"].bias], "lr": 0.1, "weight_decay": 0.0, "muon": True}])
