"""The proof that a packed step is that of its samples apart: it holds for every kind of model, and sees a leak."""

from pathlib import Path
from typing import Any

import pytest
import torch

from data.packing import pack
from models.language import LanguageModel
from tests.tiny import SAMPLES, rendered, tiny_config, training_arguments, write_shard
from training.__main__ import main
from training.checks.packing_proof import prove_packing
from training.recipe import Recipe

WINDOWED = {"model_type": "gemma2", "config": {"sliding_window": 8, "attn_logit_softcapping": 5.0, "head_dim": 8}}
PARTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "windows and caps": WINDOWED,
    "prompt gate": {"lora": {"rank": 2}, "prompt_gate": {"hidden_size": 8}},
    "lora experts": {"lora_experts": {"rank": 2, "num_experts": 2}},
    "conditioned experts": {"conditioned_experts": {"num_experts": 2}},
}


def recipe_of(directory: Path, part: dict[str, Any]) -> Recipe:
    config = tiny_config(directory)
    language = config["language_model"]
    settings = language["config"] | part.get("config", {})
    config["language_model"] = language | part | {"config": settings}
    torch.manual_seed(0)
    recipe = Recipe(generalist=config, trainable=["."])
    recipe.configure_model()
    with torch.no_grad():  # far from where updates and gates begin, which is at nothing
        for name, parameter in recipe.generalist.named_parameters():
            if any(word in name for word in ("lora_B", "experts_B", "gate.second")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return recipe


@pytest.mark.parametrize("name", PARTS)
def test_holds_for_every_kind_of_model(name: str, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, PARTS[name])
    plan = recipe.plan()
    proof = prove_packing(recipe, pack([rendered(kind, plan) for kind in SAMPLES], plan))
    assert proof.holds, [row for row in proof.rows if row.difference > proof.allowed]
    assert {row.what for row in proof.rows} >= {"loss token", "gradient language_model", "features graph", "loss masks"}
    assert all(row.theirs > 0 for row in proof.rows if row.what.startswith(("loss token", "gradient language")))
    assert proof.leak > 100 * proof.allowed
    assert "_packed" not in vars(recipe.generalist.language_model)  # everything is as before
    assert recipe.generalist.language_model.config._attn_implementation == "switchyard"


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    path = training_arguments(tmp_path / "run", write_shard(tmp_path / "shards"), 1)[-1]
    return ["prove-packing", "--config", path, "--device", "cpu"]


def test_the_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "loss token" in told and "gradient language_model" in told and "equal up to rounding" in told
    assert main([*arguments, "--", "--data.init_args.max_tokens=32"]) == 2
    assert main([*arguments, "--", "--model.init_args.init_from=[{path: nowhere}]"]) == 2
    assert "init_from[0] 'nowhere'" in capsys.readouterr().err


def test_a_leak_is_seen(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    packed = LanguageModel._packed
    monkeypatch.setattr(LanguageModel, "_packed", lambda self, x, p, lengths: packed(self, x, p, [sum(lengths)]))
    assert main(arguments) == 1
