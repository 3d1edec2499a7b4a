"""The same gradients with layers recomputed or compiled; the average of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface

from data.packing import merge_counts, pack
from layers.batch import Batch
from models.attention import ATTENTION_NAME, switchyard_attention
from tests.tiny import SAMPLES, rendered, tiny_config, training_arguments, write_shard
from train import main
from training.acceleration import Acceleration, accelerate, repeated_layers
from training.moving_average import MovingAverage
from training.recipe import Recipe


def made(folder: Path, acceleration: Acceleration, trainable: str = ".") -> Recipe:
    torch.manual_seed(0)
    recipe = Recipe(generalist=tiny_config(folder), trainable=[trainable], acceleration=acceleration)
    recipe.configure_model()
    recipe.generalist.train()
    return recipe


def gradients(recipe: Recipe, packs: list[Batch]) -> dict[str, torch.Tensor]:
    recipe.generalist.zero_grad()
    for number, item in enumerate(packs):
        torch.manual_seed(number)
        recipe.objective(recipe.generalist(item), merge_counts(packs)).backward()
    return {name: p.grad.clone() for name, p in recipe.generalist.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("trainable", [".", "^projectors"])
def test_recomputed_layers_give_the_same_gradients(tmp_path: Path, trainable: str) -> None:
    """Also those of a frozen language model, through which a projector learns."""
    plain = made(tmp_path, Acceleration(), trainable)
    again = made(tmp_path, Acceleration(recomputed=["^language_model", "^encoders.audio"]), trainable)
    calls: list[str] = []
    again.generalist.language_model.blocks[0].mlp.register_forward_pre_hook(lambda *_: calls.append("mlp"))
    plan = plain.plan()
    packs = [pack([rendered(name, plan) for name in SAMPLES], plan)]
    wanted, found = gradients(plain, packs), gradients(again, packs)
    assert wanted.keys() == found.keys() and len(calls) == 2
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_stacks_of_layers_are_found_and_others_refused(tmp_path: Path) -> None:
    recipe = made(tmp_path, Acceleration())
    stacks = {name.rpartition(".")[0] for name, _ in repeated_layers(recipe.generalist)}
    assert "language_model.model.model.layers" in stacks
    assert not any(".layers.0." in name for name in stacks if name.startswith("language_model"))
    with pytest.raises(ValueError, match=r"acceleration\.recomputed: expected a pattern of layers in .*got '\^none'"):
        accelerate(recipe.generalist, Acceleration(recomputed=["^none"]))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"float8: expected compute capability 8\.9 or more, got no GPU"):
            accelerate(recipe.generalist, Acceleration(float8=True))


@pytest.mark.slow
def test_packs_of_one_shape_are_compiled_once(tmp_path: Path) -> None:
    compiled: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    plain = made(tmp_path, Acceleration())
    fast = made(tmp_path, Acceleration(compiled="eager"))
    for block in fast.generalist.language_model.blocks:
        block.compile(backend=backend)
    plan = plain.plan()
    names = (("box", "text"), ("mask", "node"), ("text", "text", "text"), ("audio",))
    packs = [pack([rendered(name, plan) for name in own], plan, pad_to=128) for own in names]
    assert {item.input_ids.shape[1] for item in packs} == {128}
    assert [len(item.sample_lengths) for item in packs] == [2, 2, 3, 1]
    try:
        wanted = gradients(plain, packs)
        gradients(fast, packs[:1])
        once = len(compiled)
        found = gradients(fast, packs)
        assert once > 0 and len(compiled) == once
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
    finally:
        AttentionInterface.register(ATTENTION_NAME, switchyard_attention)
        torch._dynamo.reset()


def test_a_segment_of_padding_teaches_nothing(tmp_path: Path) -> None:
    recipe = made(tmp_path, Acceleration())
    plan = recipe.plan()
    samples = [rendered(name, plan) for name in ("box", "text", "node")]
    plain, padded = pack(samples, plan), pack(samples, plan, pad_to=200)
    assert plain.counts == padded.counts
    wanted, found = gradients(recipe, [plain]), gradients(recipe, [padded])
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_the_average_follows_the_formula() -> None:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data.fill_(0.0)
    average = MovingAverage(layer, 0.5)
    expected = 0.0
    for step in range(8):
        layer.weight.data.fill_(float(step + 1))
        average.update(layer, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1)
    average.swap(layer)
    torch.testing.assert_close(layer.weight, torch.full((2, 2), expected))
    average.swap(layer)
    assert layer.weight.eq(8.0).all()
    with pytest.raises(ValueError, match="average_decay: expected a number between 0 and 1, got 1"):
        MovingAverage(layer, 1.0)


@pytest.mark.slow
def test_a_run_exports_its_average_and_resumes_it(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "shards")
    named = {"trainable": ["^projectors"], "average_decay": 0.9}
    main(training_arguments(tmp_path / "whole", shard, 4, **named))
    halves = training_arguments(tmp_path / "halves", shard, 4, **named)
    main([*halves, "--trainer.limit_train_batches=2", "--trainer.max_epochs=1", "--model.init_args.export=null"])
    main(halves)
    main(training_arguments(tmp_path / "last", shard, 4, trainable=["^projectors"]))
    found = {name: (tmp_path / name / "checkpoint" / "model.safetensors").read_bytes() for name in ("whole", "halves")}
    assert found["whole"] == found["halves"]
    assert found["whole"] != (tmp_path / "last" / "checkpoint" / "model.safetensors").read_bytes()
