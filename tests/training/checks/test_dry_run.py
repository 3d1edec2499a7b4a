"""A dry run tells what a fit would do and loads nothing; what would keep it from starting is named by its key."""

from pathlib import Path

import pytest
import torch

from data.packing import pack
from tests.tiny import SAMPLES, rendered, tiny_config, training_arguments, write_shard
from train import main
from training.checks.machine import unmet_by_machine
from training.checks.memory import estimate_memory, text_pack
from training.recipe import Recipe


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--dry_run"])
    return int(ended.value.code or 0), " ".join(capsys.readouterr().out.split())


def test_tells_what_would_be_trained_on_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = write_shard(tmp_path / "shards")
    arguments = training_arguments(
        tmp_path / "run",
        shard,
        5,
        trainable=["^projectors", "^heads.boxes"],
        learning_rates={"^heads": 3e-3},
        muon={"^projectors": 0.02},
    )
    status, words = told(arguments, capsys)
    assert status == 0
    assert "language_model" in words and "projectors.image" in words and "heads.boxes" in words
    assert "Muon │ 0.02" in words and "AdamW │ 0.003" in words
    assert "18 samples of" in words and "5 steps │ at most 2,560 tokens" in words
    assert "activations" in words and "total" in words
    assert not (tmp_path / "run" / "checkpoint").exists() and not (tmp_path / "run" / "csv").exists()


def test_what_would_keep_a_fit_from_starting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = training_arguments(tmp_path / "run", tmp_path / "nowhere.tar", 5, init_from=[{"path": "earlier"}])
    if torch.cuda.is_available():
        pytest.skip("a machine without a GPU is meant")
    status, words = told([*arguments, "--trainer.accelerator=gpu"], capsys)
    assert status == 1 and words.count("would not start:") == 3
    assert "model.init_args.init_from[0]: 'earlier' is not there yet" in words
    assert "data.init_args.sources[0]: shards" in words and "trainer.accelerator: expected cpu or auto" in words


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"trainer": {"accelerator": "gpu"}}, "trainer.accelerator"),
        ({"trainer": {"strategy": "deepspeed_stage_2"}}, "trainer.strategy"),
        (
            {"trainer": {"strategy": {"class_path": "lightning.pytorch.strategies.DeepSpeedStrategy"}}},
            "trainer.strategy",
        ),
        ({"trainer": {"precision": "16-mixed"}}, "trainer.precision"),
        (
            {"model": {"init_args": {"changes": {"language_model": {"quantization": {"kind": "nf4"}}}}}},
            "language_model.quantization",
        ),
    ],
)
def test_settings_of_a_gpu_are_refused_without_one(config: dict, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (message,) = unmet_by_machine(config)
    assert key in message.split(":")[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not list(unmet_by_machine(config))


def test_a_fit_refuses_them_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = training_arguments(tmp_path / "run", tmp_path / "nowhere.tar", 5)
    with pytest.raises(ValueError, match=r"trainer\.accelerator: expected cpu or auto on a machine without a GPU"):
        main([*arguments, "--trainer.accelerator=gpu"])


def kept_by_autograd(recipe: Recipe, batch) -> int:
    """What a real forward of everything but the heads and the loss keeps, counted by the same hooks on real memory."""
    generalist = recipe.generalist.train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*generalist.parameters(), *generalist.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        encoded = generalist.encode_media(batch.media)
        embeds = generalist.embed(batch.input_ids[0])
        for kind, item in encoded.items():
            embeds = generalist.place(embeds, batch.media[kind].positions, item.projected)
        states = generalist.language_model(embeds[None], batch.position_ids, batch.segment_lengths)
        total = states.sum()
    del total
    return sum(kept.values())


def test_the_estimate_is_what_a_forward_keeps(tmp_path: Path) -> None:
    recipe = Recipe(generalist=tiny_config(tmp_path), trainable=["."])
    plan = recipe.plan()
    batch = pack([rendered(name, plan) for name in SAMPLES], plan)
    skeleton = recipe.skeleton()
    memory = estimate_memory(skeleton, recipe.groups(skeleton), "32-true", batch)
    recipe.configure_model()
    parameters = sum(p.numel() for p in recipe.generalist.parameters() if p.requires_grad)
    assert memory.gradients == 4 * parameters and memory.optimizer == 8 * parameters
    real = kept_by_autograd(recipe, batch)
    assert 0.85 * real < memory.activations < 1.3 * real


def test_frozen_parts_and_half_precision_take_less(tmp_path: Path) -> None:
    def estimated(trainable: list[str], precision: str):
        recipe = Recipe(generalist=tiny_config(tmp_path), trainable=trainable)
        skeleton = recipe.skeleton()
        return estimate_memory(skeleton, recipe.groups(skeleton), precision, text_pack(256, 64))

    whole, projectors = estimated(["."], "32-true"), estimated(["^projectors"], "32-true")
    assert projectors.activations < 0.2 * whole.activations and projectors.optimizer < 0.1 * whole.optimizer
    half = estimated(["."], "bf16-true")
    assert half.parameters < 0.51 * whole.parameters and half.activations < 0.7 * whole.activations
