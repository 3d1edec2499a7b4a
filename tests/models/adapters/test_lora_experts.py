"""Experts beside frozen layers: nothing at first, one is plain LoRA, the mixture by hand, balance, a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data.packing import pack
from models.adapters.lora import merge_adapters
from models.adapters.lora_experts import ExpertLinear, LoraExperts, add_experts, balance_loss
from models.build import build_generalist
from models.checkpoint import load_checkpoint, save_checkpoint
from models.language import LanguageModel
from tests.models.adapters.test_lora import states
from tests.models.test_attention import GROUPED
from tests.tiny import SAMPLES, rendered, tiny_config

EXPERTS: dict[str, Any] = {"num_experts": 3, "rank": 4, "alpha": 8}


def disturbed(layer: ExpertLinear) -> ExpertLinear:
    for value in (layer.router.weight, layer.experts_B):
        nn.init.normal_(value, std=0.3)
    return layer


def test_the_mixture_written_out() -> None:
    torch.manual_seed(0)
    layer = disturbed(ExpertLinear(nn.Linear(6, 5), LoraExperts(**EXPERTS)))
    x = torch.randn(2, 7, 6)
    weights = (x @ layer.router.weight.T).softmax(-1)
    expected = layer.base_layer(x)
    for expert in range(3):
        update = x @ layer.experts_A[expert].T @ layer.experts_B[expert].T
        expected = expected + 8 / 4 * weights[..., expert, None] * update
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.shares, weights.mean((0, 1)))


def test_one_expert_is_plain_lora() -> None:
    pytest.importorskip("peft")
    from models.adapters.lora import Lora

    torch.manual_seed(0)
    experts = LanguageModel("llama", GROUPED, lora_experts=LoraExperts(num_experts=1, rank=4, alpha=8)).eval()
    torch.manual_seed(0)
    targets = ("gate_proj", "up_proj", "down_proj")
    plain = LanguageModel("llama", GROUPED, lora=Lora(rank=4, alpha=8, targets=targets)).eval()
    for name, module in experts.model.named_modules():
        if isinstance(module, ExpertLinear):
            disturbed(module)
            other: Any = plain.model.get_submodule(name)
            other.base_layer.load_state_dict(module.base_layer.state_dict())
            other.lora_A["default"].weight.data.copy_(module.experts_A[0])
            other.lora_B["default"].weight.data.copy_(module.experts_B[0])
    rest = {n: v for n, v in experts.model.state_dict().items() if n in plain.model.state_dict()}
    plain.model.load_state_dict(rest, strict=False)
    torch.testing.assert_close(states(experts), states(plain), atol=1e-6, rtol=1e-5)


def test_nothing_at_first_and_trained_alone() -> None:
    torch.manual_seed(0)
    model = LanguageModel("llama", GROUPED)
    before = states(model).detach()
    add_experts(model.model, LoraExperts(**EXPERTS))
    torch.testing.assert_close(states(model), before)
    states(model).square().sum().backward()
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained and all("experts_" in name or "router" in name for name in trained)
    assert all(value.grad is None for name, value in model.named_parameters() if name not in trained)


def test_balance_is_nought_where_all_are_used_alike() -> None:
    torch.manual_seed(0)
    layer = ExpertLinear(nn.Linear(6, 5), LoraExperts(**EXPERTS))
    layer(torch.randn(9, 6))
    assert balance_loss(layer).item() == pytest.approx(0.0, abs=1e-6)
    layer.shares = torch.tensor([1.0, 0.0, 0.0])
    assert balance_loss(layer).item() == pytest.approx(2.0)  # variance 2/9 over mean² 1/9


def test_balance_joins_the_loss_and_a_checkpoint_returns_the_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    balances: list[torch.Tensor] = []

    def recorded(model: nn.Module) -> torch.Tensor:
        balances.append(balance_loss(model))
        return balances[-1]

    monkeypatch.setattr("models.generalist.balance_loss", recorded)
    config = tiny_config(tmp_path)
    config["language_model"] = {**config["language_model"], "lora_experts": EXPERTS | {"balance_weight": 0.5}}
    model = build_generalist(config).train()
    for module in model.modules():
        if isinstance(module, ExpertLinear):
            disturbed(module)
    plan = model.plan()
    batch = pack([rendered(name, plan) for name in SAMPLES], plan)
    losses = model(batch)
    plain = model.eval()(batch)
    added = losses["token"].total - plain["token"].total
    (balance,) = balances  # in training alone
    torch.testing.assert_close(added, 0.5 * balance * plain["token"].count, atol=1e-3, rtol=1e-3)
    assert added > 0 and all(module.shares is None for module in model.modules() if isinstance(module, ExpertLinear))
    model.language_model.requires_grad_(False)
    assert torch.equal(model.train()(batch)["token"].total, plain["token"].total) and len(balances) == 1
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="got experts with a router, which cannot be merged"):
        merge_adapters(model.language_model)
    save_checkpoint(model, config, tmp_path / "experts")
    again = load_checkpoint(tmp_path / "experts")
    torch.testing.assert_close(states(again.language_model), states(model.language_model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"lora_experts": LoraExperts(targets=("query",))},
            r"lora_experts.targets: expected some of .*got \['query'\]",
        ),
        ({"lora_experts": LoraExperts(num_experts=0)}, "expected at least 1, got 0 of rank 8"),
    ],
)
def test_what_cannot_be_built(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LanguageModel("llama", GROUPED, **arguments)
