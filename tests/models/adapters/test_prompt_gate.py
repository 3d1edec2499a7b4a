"""The gate by the instruction: begins at one, reads the instruction alone, and is the same in packs and in batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data.packing import pack
from data.records import Message, Part
from data.render import instruction_of, render_prompt
from inference.conversation import Conversation
from inference.session import Session
from layers.media import Audio
from models.adapters.prompt_gate import GateNetwork, Gates, PromptGate
from models.build import build_generalist
from models.checkpoint import load_checkpoint, save_checkpoint
from models.generalist import Generalist
from models.language import LanguageModel
from tests.models.test_attention import GROUPED
from tests.tiny import SAMPLES, rendered, tiny_config

pytest.importorskip("peft")
from models.adapters.lora import Lora, merge_adapters

LORA = Lora(rank=4, alpha=4, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
IDS = torch.arange(1, 13)[None]
POSITIONS = torch.cat([torch.arange(7), torch.arange(5)])[None]
LENGTHS = [7, 5]
INSTRUCTIONS = [torch.tensor([3, 4, 5]), torch.tensor([9, 8, 7, 6])]


def gated(disturb: bool = True) -> LanguageModel:
    """A grouped-query model with updates that do something and, where asked for, gates that differ."""
    torch.manual_seed(0)
    model = LanguageModel("llama", GROUPED, lora=LORA, prompt_gate=PromptGate(hidden_size=16)).eval()
    for name, value in model.named_parameters():
        if "lora_B" in name or (disturb and name.startswith("gate.second") and name.endswith("weight")):
            nn.init.normal_(value, std=0.3)
    return model


def states(model: LanguageModel, gates: Gates | None) -> torch.Tensor:
    return model(model.embed(IDS), POSITIONS, LENGTHS, gates)


def test_a_new_gate_is_one_everywhere_and_equals_plain_lora() -> None:
    model = gated(disturb=False)
    gates = model.gates(INSTRUCTIONS)
    assert gates is not None and set(gates.values) == {model.hidden_size, GROUPED["num_key_value_heads"] * 8}
    assert all(torch.equal(value, torch.ones_like(value)) for value in gates.values.values())
    plain = LanguageModel("llama", GROUPED, lora=LORA).eval()
    plain.model.load_state_dict(model.model.state_dict())
    torch.testing.assert_close(states(model, gates), states(plain, None))


def test_the_network_written_out() -> None:
    torch.manual_seed(0)
    network = GateNetwork(6, [5], PromptGate(hidden_size=7, limit=0.6))
    nn.init.normal_(network.second["5"].weight)
    hidden = torch.randn(4, 6)
    pieces = network.second["5"](network.first(hidden))
    weights = network.pool["5"](pieces).softmax(0)
    expected = (weights * pieces).sum(0).relu().clamp(max=0.6)
    torch.testing.assert_close(network(hidden, [4]).values[5][0], expected)
    assert (expected == 0.6).any() or (expected == 0).any()


def test_a_gate_depends_on_its_own_instruction_alone() -> None:
    model = gated()
    together = model.gates(INSTRUCTIONS)
    assert together is not None
    for place, instruction in enumerate(INSTRUCTIONS):
        alone = model.gates([instruction])
        assert alone is not None
        for width, value in alone.values.items():
            torch.testing.assert_close(value[0], together.values[width][place], atol=1e-5, rtol=1e-5)
    first, second = (
        value[0]
        for value in (together.values[model.hidden_size], together.rows(torch.tensor([1])).values[model.hidden_size])
    )
    assert not torch.allclose(first, second, atol=1e-3)


def test_the_instruction_is_read_without_the_updates() -> None:
    model = gated()
    before = model.gates(INSTRUCTIONS)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value, std=1.0)
    after = model.gates(INSTRUCTIONS)
    assert before is not None and after is not None
    assert all(torch.equal(before.values[width], after.values[width]) for width in before.values)


def test_a_pack_equals_its_segments_and_cached_rows() -> None:
    model = gated()
    packed = states(model, model.gates(INSTRUCTIONS))
    pieces = packed.split(LENGTHS)
    start = 0
    for length, instruction, piece in zip(LENGTHS, INSTRUCTIONS, pieces, strict=True):
        embeds = model.embed(IDS[:, start : start + length])
        positions = torch.arange(length)[None]
        gates = model.gates([instruction])
        torch.testing.assert_close(model(embeds, positions, [length], gates), piece, atol=1e-5, rtol=1e-4)
        mask = torch.ones(1, length, dtype=torch.long)
        cached = model.forward_cached(embeds, mask, positions, None, gates).hidden_states[0]
        torch.testing.assert_close(cached, piece, atol=1e-5, rtol=1e-4)
        start += length


def test_gates_and_updates_learn_and_the_model_does_not() -> None:
    model = gated().train()
    states(model, model.gates(INSTRUCTIONS)).square().sum().backward()
    trained = {name for name, value in model.named_parameters() if value.grad is not None}
    assert any(name.startswith("gate.first") for name in trained) and any("lora_A" in name for name in trained)
    assert all(name.startswith("gate.") or "lora_" in name for name in trained)


def gated_generalist(tmp_path: Path) -> tuple[Generalist, dict[str, Any]]:
    config = tiny_config(tmp_path)
    lora = {"rank": 4, "alpha": 4, "targets": ["q_proj", "v_proj"]}
    config["language_model"] = {**config["language_model"], "lora": lora, "prompt_gate": {"hidden_size": 8}}
    torch.manual_seed(0)
    model = build_generalist(config)
    for name, value in model.language_model.named_parameters():
        if "lora_B" in name or (name.startswith("gate.second") and name.endswith("weight")):
            nn.init.normal_(value, std=0.3)
    return model, config


def test_a_generalist_trains_answers_and_is_stored_with_its_gate(tmp_path: Path) -> None:
    model, config = gated_generalist(tmp_path)
    plan = model.plan()
    batch = pack([rendered(name, plan) for name in SAMPLES], plan)
    assert len(batch.instructions) == len(batch.segment_lengths)
    model.train()
    sum(term.total for term in model(batch).values()).backward()
    assert all(value.grad is not None for name, value in model.language_model.named_parameters() if "gate." in name)
    save_checkpoint(model.eval(), config, tmp_path / "gated")
    again = load_checkpoint(tmp_path / "gated")
    questions = [Conversation.ask(text) for text in ("say hello", "draw a blue 4", "yes or no ?")]
    one = Session(again, max_new_tokens=8, batch_size=1).generate(questions)
    three = Session(model, max_new_tokens=8, batch_size=3).generate(questions)
    assert [reply.token_ids for reply in one] == [reply.token_ids for reply in three]
    with pytest.raises(ValueError, match="got a prompt gate, which cannot be merged"):
        merge_adapters(model.language_model)


def test_the_instruction_is_what_the_first_user_turn_says() -> None:
    question = Message("user", (Part("audio", media="clip"), Part("text", text=" what is said? ")))
    later = Message("user", (Part("text", text="and now?"),))
    assert instruction_of([Message("system", (Part("text", text="be kind"),)), question, later]) == "what is said?"
    assert instruction_of([Message("user", (Part("audio", media="clip"),))]) == ""


def test_marks_of_media_stand_in_the_prompt_and_not_in_the_instruction(tmp_path: Path) -> None:
    _, config = gated_generalist(tmp_path)
    plain, marked = build_generalist(config), build_generalist({**config, "media_marks": {"audio": ["say", "hello"]}})
    clip = {"clip": Audio(torch.randn(16_000) * 0.1, 16_000)}
    question = [Message("user", (Part("audio", media="clip"), Part("text", text="yes or no ?")))]
    bare, given = (render_prompt(question, clip, model.plan()) for model in (plain, marked))
    assert plain.plan().hash != marked.plan().hash and given.instruction == bare.instruction
    before, after = (marked.tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("say", "hello"))
    first, last = given.media[0].positions[0], given.media[0].positions[-1]
    assert given.input_ids[first - len(before) : first] == before
    assert given.input_ids[last + 1 : last + 1 + len(after)] == after
    assert len(given.input_ids) == len(bare.input_ids) + len(before) + len(after)
    with pytest.raises(ValueError, match=r"media_marks: expected some of .*, got \['smell'\]"):
        build_generalist({**config, "media_marks": {"smell": ["a", "b"]}})


def test_gates_are_given_where_they_are_wanted_and_only_there() -> None:
    with pytest.raises(ValueError, match="expected gates of the instructions, got none"):
        states(gated(), None)
    plain = LanguageModel("llama", GROUPED)
    assert plain.gates(INSTRUCTIONS) is None
    with pytest.raises(ValueError, match="expected no gates of the instructions, got some"):
        states(plain, gated().gates(INSTRUCTIONS))
    with pytest.raises(ValueError, match="expected lora beside it"):
        LanguageModel("llama", GROUPED, prompt_gate=PromptGate())
