"""Experts chosen by what a token is: written out, exact in packs and in steps, and one dense layer per situation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data.packing import pack
from inference.conversation import Conversation
from inference.session import Session
from models.__main__ import main as models_main
from models.adapters.conditioned_experts import (
    CALL,
    SITUATIONS,
    TEXT,
    ConditionedExperts,
    ConditionedLinear,
    Situations,
    merge_conditioned_experts,
)
from models.build import build_generalist
from models.checkpoint import load_checkpoint, save_checkpoint
from models.generalist import Generalist
from models.language import LanguageModel
from tests.models.test_attention import GROUPED
from tests.tiny import SAMPLES, rendered, tiny_config

EXPERTS: dict[str, Any] = {"num_experts": 4, "top_k": 2, "hidden_size": 8}
NAMES = list(SITUATIONS)


def disturbed(model: nn.Module) -> nn.Module:
    """With experts that differ."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, ConditionedLinear):
                module.weight.add_(torch.randn_like(module.weight) * 0.1)
                for parameter in module.gate.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.5)
    return model


def generalist(tmp_path: Path) -> tuple[Generalist, dict[str, Any]]:
    config = tiny_config(tmp_path)
    config["language_model"] = {**config["language_model"], "conditioned_experts": EXPERTS}
    model = build_generalist(config)
    disturbed(model)
    return model, config


@pytest.mark.parametrize("bias", [True, False])
def test_the_mixture_written_out(bias: bool) -> None:
    torch.manual_seed(0)
    experts = ConditionedExperts(**EXPERTS)
    reader = Situations(experts)
    layer = ConditionedLinear(nn.Linear(6, 5, bias=bias), experts, reader)
    disturbed(layer)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    x, situations = torch.randn(1, 7, 6), torch.tensor([[0, 2, 2, 1, 0, 3, 2]])
    reader.use(situations)
    found = layer(x)
    for place, index in enumerate(situations[0].tolist()):
        attributes = torch.tensor([list(SITUATIONS[NAMES[index]])], dtype=torch.float32)
        scores = layer.gate(attributes)[0]
        best = scores.topk(2).indices
        weights = scores[best].softmax(0)
        expected = sum(
            weight * F.linear(x[0, place], layer.weight[e], None if layer.bias is None else layer.bias[e])
            for weight, e in zip(weights, best.tolist(), strict=True)
        )
        torch.testing.assert_close(found[0, place], expected, atol=1e-5, rtol=1e-5)


def test_a_model_begins_as_it_was() -> None:
    torch.manual_seed(0)
    plain = LanguageModel("llama", GROUPED)
    torch.manual_seed(0)
    mixed = LanguageModel("llama", GROUPED, conditioned_experts=ConditionedExperts(**EXPERTS))
    ids, positions, situations = torch.arange(9)[None], torch.arange(9)[None], torch.arange(9)[None] % len(NAMES)
    expected = plain(plain.embed(ids), positions, [9])
    torch.testing.assert_close(mixed(mixed.embed(ids), positions, [9], situations=situations), expected)


def test_what_a_token_is_decides_and_its_neighbours_do_not() -> None:
    reader = Situations(ConditionedExperts(**EXPERTS))
    layer = ConditionedLinear(nn.Linear(6, 5), ConditionedExperts(**EXPERTS), reader)
    disturbed(layer)
    x = torch.randn(1, 3, 6)
    reader.use(torch.tensor([[0, 1, 2]]))
    three = layer(x)
    reader.use(torch.tensor([[0, 2, 2]]))
    other = layer(x)
    torch.testing.assert_close(three[:, [0, 2]], other[:, [0, 2]])
    assert not torch.allclose(three[:, 1], other[:, 1], atol=1e-3)


def test_packs_steps_and_checkpoints_agree(tmp_path: Path) -> None:
    model, config = generalist(tmp_path)
    plan = model.plan()
    model.train()
    sum(term.total for term in model(pack([rendered(name, plan) for name in SAMPLES], plan)).values()).backward()
    reached = {name for name, value in model.named_parameters() if ".gate." in name and value.grad is not None}
    assert reached and all(".mlp." in name for name in reached)
    model.eval()
    together = model(pack([rendered(name, plan) for name in SAMPLES], plan))["token"].total
    alone = [model(pack([rendered(name, plan)], plan))["token"].total for name in SAMPLES]
    torch.testing.assert_close(together, torch.stack(alone).sum(), atol=1e-3, rtol=1e-4)

    save_checkpoint(model, config, tmp_path / "experts")
    again = load_checkpoint(tmp_path / "experts")
    picture = torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8)
    questions = [Conversation.ask("where is the red 7 ?", images=[picture]), Conversation.ask("draw a blue 4")]
    one = Session(again, max_new_tokens=8, batch_size=1).generate(questions)
    both = Session(model, max_new_tokens=8, batch_size=2).generate(questions)
    assert [reply.token_ids for reply in one] == [reply.token_ids for reply in both]


def test_cached_steps_equal_the_pack(tmp_path: Path) -> None:
    model, _ = generalist(tmp_path)
    model.eval()
    ids = torch.tensor([model.vocabulary.media_ids["image"], 5, 6, model.vocabulary.open_ids["ground"], 7])
    conditions = model.conditions([ids], [])
    embeds = model.embed(ids)[None]
    packed = model.language_model(embeds, torch.arange(5)[None], [5], situations=conditions.packed_situations())
    first = model.conditions([ids[:3]], [])
    output = model.step(embeds[:, :3], torch.ones(1, 3, dtype=torch.long), torch.arange(3)[None], None, first)
    states = [output.hidden_states[0]]
    for place in (3, 4):
        first = first.following(ids[place : place + 1])
        mask, position = torch.ones(1, place + 1, dtype=torch.long), torch.tensor([[place]])
        output = model.step(embeds[:, place : place + 1], mask, position, output.cache, first)
        states.append(output.hidden_states[0])
    torch.testing.assert_close(torch.cat(states), packed, atol=1e-5, rtol=1e-4)


def test_tokens_know_what_they_are(tmp_path: Path) -> None:
    model, _ = generalist(tmp_path)
    table = model.situation_of
    assert isinstance(table, torch.Tensor) and len(table) == model.language_model.vocab_size
    vocabulary = model.vocabulary
    assert NAMES[table[vocabulary.media_ids["audio"]]] == "audio"
    assert {NAMES[table[index]] for index in vocabulary.open_ids.values()} == {CALL}
    assert NAMES[table[vocabulary.eos_id]] == TEXT == NAMES[table[vocabulary.encode_text("red")[0]]]


def test_one_dense_layer_is_left_of_a_situation(tmp_path: Path) -> None:
    model, config = generalist(tmp_path)
    save_checkpoint(model, config, tmp_path / "experts")
    out = tmp_path / "text"
    assert models_main(["merge", str(tmp_path / "experts"), "--situation", "text", "--out", str(out)]) == 0
    dense = load_checkpoint(out)
    assert dense.language_model.situations is None
    assert not any(isinstance(module, ConditionedLinear) for module in dense.modules())
    ids = torch.tensor(model.vocabulary.encode_text("say hello"))
    positions, lengths = torch.arange(len(ids))[None], [len(ids)]
    situations = model.conditions([ids], []).packed_situations()
    expected = model.eval().language_model(model.embed(ids)[None], positions, lengths, situations=situations)
    found = dense.language_model(dense.embed(ids)[None], positions, lengths)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert models_main(["merge", str(out), "--situation", "text", "--out", str(tmp_path / "again")]) == 2


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="top_k: expected 1 to 4 experts, got 5"):
        LanguageModel("llama", GROUPED, conditioned_experts=ConditionedExperts(num_experts=4, top_k=5))
    with pytest.raises(ValueError, match=r"no linear layer of the model ends in \['query'\]"):
        LanguageModel("llama", GROUPED, conditioned_experts=ConditionedExperts(targets=("query",)))
    with pytest.raises(ValueError, match=r"situations: expected \['audio', 'call', .*, got \['text'\]"):
        Situations(ConditionedExperts(situations={"text": [1]}))
    with pytest.raises(ValueError, match="lists of 0 and 1 of one length"):
        Situations(ConditionedExperts(situations={name: [2, 0] for name in SITUATIONS}))
    model = LanguageModel("llama", GROUPED, conditioned_experts=ConditionedExperts(**EXPERTS))
    embeds, positions = model.embed(torch.arange(4)[None]), torch.arange(4)[None]
    with pytest.raises(ValueError, match="expected situations of the tokens, got none"):
        model(embeds, positions, [4])
    with pytest.raises(ValueError, match=r"expected situations \(1, 4\), got \(1, 3\)"):
        model(embeds, positions, [4], situations=torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="situation: expected one of"):
        merge_conditioned_experts(model, "smell")
