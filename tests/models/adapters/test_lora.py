"""Low-rank updates: nothing at first, trained alone, stored alone, and gone without a trace when merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from models.__main__ import main as models_main
from models.build import build_generalist
from models.checkpoint import CONFIG, WEIGHTS, load_checkpoint, save_checkpoint
from models.language import LanguageModel
from tests.models.test_attention import GROUPED
from tests.tiny import tiny_config

pytest.importorskip("peft")
LORA: dict[str, Any] = {"rank": 4, "alpha": 8}


def states(model: LanguageModel) -> torch.Tensor:
    ids = torch.arange(1, 13)[None]
    return model(model.embed(ids), torch.cat([torch.arange(7), torch.arange(5)])[None], [7, 5])


def adapted(model_type: str = "llama", **lora: Any) -> LanguageModel:
    from models.adapters.lora import Lora

    torch.manual_seed(0)
    return LanguageModel(
        model_type, GROUPED | {"head_dim": 8} if model_type == "qwen3" else GROUPED, lora=Lora(**LORA | lora)
    )


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_an_update_begins_at_nothing_and_is_trained_alone(model_type: str) -> None:
    model = adapted(model_type).eval()
    torch.manual_seed(0)
    plain = LanguageModel(model_type, GROUPED | {"head_dim": 8} if model_type == "qwen3" else GROUPED).eval()
    names = {name for name, value in model.named_parameters() if value.requires_grad}
    assert names and all("lora_" in name for name in names)
    for name, value in plain.model.named_parameters():
        inside = name.replace(".weight", ".base_layer.weight") if any(end in name for end in ("_proj.",)) else name
        model.model.get_parameter(inside).data.copy_(value)
    torch.testing.assert_close(states(model), states(plain))
    states(model).sum().backward()
    assert all(value.grad is None for name, value in model.named_parameters() if name not in names)


def test_merged_is_the_same_without_adapters() -> None:
    from models.adapters.lora import merge_adapters

    model = adapted().eval()
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    before = states(model).detach()
    assert merge_adapters(model) == 7 * GROUPED["num_hidden_layers"]
    torch.testing.assert_close(states(model), before, atol=1e-5, rtol=1e-4)
    assert not [name for name, _ in model.named_parameters() if "lora" in name or "base_layer" in name]


def test_a_name_that_no_layer_has() -> None:
    with pytest.raises(ValueError, match=r"lora.targets: expected some of .*'q_proj'.*got \['query'\]"):
        adapted(targets=("query",))


def test_a_checkpoint_with_adapters_is_loaded_and_merged(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config["language_model"] = {**config["language_model"], "lora": LORA}
    generalist = build_generalist(config)
    for name, value in generalist.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    save_checkpoint(generalist, config, tmp_path / "adapted")
    ours = load_checkpoint(tmp_path / "adapted")
    torch.testing.assert_close(states(ours.language_model), states(generalist.eval().language_model))
    assert models_main(["merge", str(tmp_path / "adapted"), "--out", str(tmp_path / "merged")]) == 0
    merged = load_checkpoint(tmp_path / "merged")
    torch.testing.assert_close(states(merged.language_model), states(ours.language_model), atol=1e-5, rtol=1e-4)
    assert "lora" not in yaml.safe_load((tmp_path / "merged" / CONFIG).read_text())["language_model"]
    assert (tmp_path / "merged" / WEIGHTS).stat().st_size < (tmp_path / "adapted" / WEIGHTS).stat().st_size
    assert models_main(["merge", str(tmp_path / "merged"), "--out", str(tmp_path / "again")]) == 2
