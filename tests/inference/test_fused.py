"""The fused loop against transformers' own generation and the generic loop, and when it is not taken."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from inference.choosing import DecodingOptions
from inference.conversation import Conversation
from inference.decoding import Decoded, Start, decode
from inference.hooks import hooked_layers
from inference.reading.fused import FusedReader, choose_reader
from inference.reading.generic import GenericReader
from inference.session import Session
from models.adapters.lora import Lora
from models.fused import cache as fused_cache
from models.fused.layers import CannotFuse, fuse
from models.generalist import Generalist
from models.language import LanguageModel
from routers.constraint import CallConstraint
from tests.inference.conftest import WIDTH
from tests.inference.test_session import IMAGE, conversations

SIZE: dict[str, Any] = {
    "vocab_size": 448,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 16, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
    "mistral": {"sliding_window": 6},
    "qwen2": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    "qwen3": {"head_dim": 16, "use_sliding_window": True, "sliding_window": 5, "layer_types": MIXED},
    "smollm3": {"no_rope_layer_interval": 2, "tie_word_embeddings": True},
    "gemma3_text": {
        "tie_word_embeddings": False,
        "head_dim": 8,
        "query_pre_attn_scalar": 12,
        "sliding_window": 4,
        "layer_types": MIXED,
    },
}
LENGTHS = [5, 1, 9, 3, 9]
NEW = 14


def language_model(name: str, seed: int = 0, **arguments: Any) -> LanguageModel:
    torch.manual_seed(seed)
    model = LanguageModel(name, {**SIZE, **ARCHITECTURES[name]}, **arguments).eval()
    for parameter in model.parameters():  # biases and norms too
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def with_model(generalist: Generalist, model: LanguageModel) -> Generalist:
    generalist.language_model = model
    return generalist


def prompts(lengths: list[int] = LENGTHS, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 300, (length,), generator=generator) for length in lengths]


def run(reader: FusedReader | GenericReader, ids: list[Tensor], stop: list[int], new: int = NEW, **options) -> list:
    arguments = {name: options.pop(name) for name in ("constraint", "watcher", "never_sampled") if name in options}
    with torch.inference_mode():
        fused = isinstance(reader, FusedReader)
        starts = [Start(reader.embed(row.tolist()) if fused else reader.model.embed(row)) for row in ids]
        return decode(reader, starts, DecodingOptions(new, **options), stop_ids=stop, **arguments)


def assert_alike(found: list[Decoded], expected: list[Decoded]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
        torch.testing.assert_close(one.hidden_states, other.hidden_states, rtol=1e-3, atol=1e-4)


def _end(ids: list[int], stop: Sequence[int]) -> int:
    return next((place for place, token in enumerate(ids) if token in stop), len(ids))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ids_are_those_that_transformers_generates(name):
    """Ragged prompts in one batch, ends at different times, against each prompt alone under eager attention."""
    model = language_model(name)
    oracle = AutoModelForCausalLM.from_config(deepcopy(model.config), attn_implementation="eager").eval()
    oracle.load_state_dict(model.model.state_dict())
    whole = []
    for row in prompts():
        mask = torch.ones(1, len(row), dtype=torch.long)
        out = oracle.generate(row[None], attention_mask=mask, max_new_tokens=NEW, do_sample=False)
        whole.append(out[0, len(row) :].tolist())
    written = sorted({token for ids in whole for token in ids})
    stop = max(combinations(written, 2), key=lambda pair: len({_end(ids, pair) for ids in whole}))
    ends = [_end(ids, stop) for ids in whole]
    expected = [(ids[:end], "length" if end == NEW else "stop") for ids, end in zip(whole, ends, strict=True)]
    decoded = run(FusedReader(model), prompts(), list(stop))
    assert [(item.token_ids, item.finish_reason) for item in decoded] == expected
    assert len(set(ends)) >= 2, "the random weights no longer end at different times"
    for row, item in zip(prompts(), decoded, strict=True):
        said = torch.cat([row, torch.tensor(item.token_ids, dtype=torch.long)])
        with torch.inference_mode():
            states = oracle(said[None], output_hidden_states=True).hidden_states[-1][0, len(row) :]
        torch.testing.assert_close(item.hidden_states, states, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_p": 0.9, "log_probabilities": True}])
def test_the_fused_loop_is_the_generic_one(generalist, options):
    ids = prompts([5, 1, 9, 3, 7, 7, 7, 2, 6, 6, 4, 1, 8, 3, 3, 2])
    stop = list(range(300, 340))
    fused = run(FusedReader.of(generalist), ids, stop, **options)
    generic = run(GenericReader(generalist), ids, stop, **options)
    assert_alike(fused, generic)
    assert {item.finish_reason for item in fused} == {"stop", "length"}
    if options:
        for one, other in zip(fused, generic, strict=True):
            assert one.log_probability == pytest.approx(other.log_probability, rel=1e-3)
    for place in (0, 4):
        (alone,) = run(FusedReader.of(generalist), [ids[place]], stop)
        if not options:
            assert alone.token_ids == fused[place].token_ids


def test_constrained_replies_are_those_of_the_generic_loop(generalist):
    ids, stop = prompts([5, 1, 9, 3, 7, 2]), [generalist.vocabulary.eos_id]
    names = [["ground", "draw", "judge"]] * 6
    found = []
    for reader in (FusedReader.of(generalist), GenericReader(generalist)):
        constraint = CallConstraint(generalist.vocabulary, names)
        found.append(run(reader, ids, stop, new=30, temperature=3.0, constraint=constraint))
    assert_alike(*found)
    opened = set(generalist.vocabulary.open_ids.values())
    assert any(opened & set(item.token_ids) for item in found[0]), "no reply makes a call any longer"


@pytest.mark.parametrize("options", [{}, {"constrained": True}, {"memory": 500, "shared_prefix": 4}, {"batch_size": 1}])
def test_sessions_answer_alike_and_say_how(generalist, options):
    """Media, calls with queries, prefixes that several share, conversations that go on."""
    asked = [*conversations(), *(Conversation.ask(word, images=[IMAGE]) for word in ("where is the 9?", "is it?"))]
    replies = []
    for fused in (True, False):
        session = Session(generalist, max_new_tokens=16, fused=fused, **options)
        first = session.generate(asked)
        second = session.generate([item.then(reply, "and now?") for item, reply in zip(asked, first, strict=True)])
        replies.append([*first, *second])
        assert {reply.loop for reply in replies[-1]} == {"fused" if fused else "generic"}
    for one, other in zip(*replies, strict=True):
        assert (one.token_ids, one.finish_reason, one.calls) == (other.token_ids, other.finish_reason, other.calls)
    assert len({reply.token_ids for reply in replies[0]}) > 8


def test_what_was_read_serves_both_loops(generalist):
    ids, lengths = prompts([5, 4, 9, 9, 7]), [3, 0, 8, 8, 2]
    fused, generic = FusedReader.of(generalist), GenericReader(generalist)
    begun = [generalist.embed(row[:length]) for row, length in zip(ids, lengths, strict=True) if length]
    with torch.inference_mode():
        for reader, other in ((fused, generic), (generic, fused)):
            for one, two in zip(reader.read_pasts(begun), other.read_pasts(begun), strict=True):
                for a, b in zip((*one.keys, *one.values), (*two.keys, *two.values), strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            read = iter(reader.read_pasts(begun))
            rests = [generalist.embed(row[length:]) for row, length in zip(ids, lengths, strict=True)]
            starts = [Start(rest, next(read) if length else None) for rest, length in zip(rests, lengths, strict=True)]
            on = decode(other, starts, DecodingOptions(NEW), stop_ids=[447])
            assert_alike(on, run(fused, ids, [447]))


def test_a_watcher_gets_the_past_of_rows_that_have_moved(generalist):
    class Watching:
        def __init__(self) -> None:
            self.pasts: dict[int, Any] = {}

        def prefilled(self) -> None: ...

        def appended(self, new) -> None: ...

        def ended(self, row, past) -> None:
            self.pasts[row] = past()

    ids, watcher, stop = prompts([5, 1, 9, 3, 7, 7, 2, 6]), Watching(), list(range(100, 160))
    decoded = run(FusedReader.of(generalist), ids, stop, temperature=2.0, watcher=watcher)
    assert {item.finish_reason for item in decoded} == {"stop", "length"}
    for row, item in enumerate(decoded):
        said = torch.cat([ids[row], torch.tensor(item.token_ids, dtype=torch.long)])
        with torch.inference_mode():
            (fresh,) = GenericReader(generalist).read_pasts([generalist.embed(said)])
        for kept, expected in zip(watcher.pasts[row].values, fresh.values, strict=True):
            torch.testing.assert_close(kept, expected, rtol=1e-3, atol=1e-4)


def test_rows_may_be_taken_several_times_and_memory_grows(generalist, monkeypatch):
    """As in a beam search; columns are taken four at a time here."""
    monkeypatch.setattr(fused_cache, "_ROOM", 4)
    tokens = torch.randint(3, 300, (20, 3), generator=torch.Generator().manual_seed(1)).tolist()
    logits = []
    with torch.inference_mode():
        begun = [generalist.embed(row) for row in prompts([2, 5])]
        for reader in (FusedReader.of(generalist), GenericReader(generalist)):
            reading = reader.read(begun, [None, None], None, 20)
            for number, own in enumerate(tokens):
                reading.keep([1, 0, 1] if number == 0 else [2, 0, 1])
                reading.append(own)
            logits.append(reading.logits)
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-4)


def _times(model: LanguageModel, parameter: nn.Parameter) -> None:
    parameter.data *= 1.5


def _replaced(model: LanguageModel, parameter: nn.Parameter) -> None:
    parameter.data = parameter.data * 1.5


def _loaded(model: LanguageModel, parameter: nn.Parameter) -> None:
    model.load_state_dict({name: value * 1.1 for name, value in model.state_dict().items()})


def _stepped(model: LanguageModel, parameter: nn.Parameter) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    embeds = model.embed(torch.tensor([[5, 6, 7]]))
    model(embeds, torch.arange(3)[None], [3]).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def _cast(model: LanguageModel, parameter: nn.Parameter) -> None:
    model.double()


@pytest.mark.parametrize("change", [_times, _replaced, _loaded, _stepped, _cast])
@pytest.mark.parametrize("part", ["self_attn.k_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm"])
def test_changed_weights_are_seen(generalist, change, part):
    """Nothing that was made of the weights may outlive them."""
    if part != "self_attn.k_proj" and change in (_loaded, _stepped, _cast):
        pytest.skip("they change all parts at once")
    ids = prompts([5, 3])
    before = run(FusedReader.of(generalist), ids, [447])
    model = generalist.language_model
    change(model, model.blocks[0].get_submodule(part).weight)
    try:
        after = run(FusedReader.of(generalist), ids, [447])
    except CannotFuse as reason:
        assert change is _replaced and "larger buffer" in str(reason)
        return
    assert_alike(after, run(GenericReader(generalist), ids, [447]))
    if change is not _cast:
        pairs = zip(before, after, strict=True)
        assert any(not torch.equal(a.hidden_states[:1], b.hidden_states[:1]) for a, b in pairs)


def test_fused_parameters_share_their_memory_and_are_saved_as_before(generalist, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    model = generalist.language_model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers, _ = fuse(model)
    attention = model.blocks[0].self_attn
    assert layers[0].qkv.weight.data_ptr() == attention.q_proj.weight.data_ptr()
    assert torch.equal(layers[0].qkv.weight[-16:], attention.v_proj.weight)
    assert fuse(model)[0][0].qkv.weight.data_ptr() == layers[0].qkv.weight.data_ptr(), "moved once"
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    for stored in (model.state_dict(), load_file(tmp_path / "weights.safetensors")):
        assert stored.keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in stored.items())
    assert attention.q_proj.weight.requires_grad and attention.q_proj.weight.is_leaf


def _hooked(generalist: Generalist) -> None:
    generalist.language_model.blocks[1].mlp.register_forward_hook(lambda module, inputs, output: output)


def _adapted(generalist: Generalist) -> None:
    generalist.language_model = language_model("llama", lora=Lora(rank=2))


def _unknown(generalist: Generalist) -> None:
    config = {"vocab_size": 448, "n_embd": WIDTH, "n_layer": 1, "n_head": 2, "bos_token_id": None, "eos_token_id": None}
    generalist.language_model = LanguageModel("gpt2", config).eval()


def _replaced_step(generalist: Generalist) -> None:
    generalist.step = generalist.step  # type: ignore[method-assign]


def _dynamic(generalist: Generalist) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    generalist.language_model = LanguageModel("llama", {**SIZE, "rope_parameters": rope}).eval()


def _part_of_a_buffer(generalist: Generalist) -> None:
    weight = generalist.language_model.blocks[0].self_attn.q_proj.weight
    weight.data = torch.cat([weight.data, weight.data])[: len(weight)]


REFUSED = {
    "watches": _hooked,
    "peft": _adapted,
    "gpt2": _unknown,
    "'step'": _replaced_step,
    "dynamic": _dynamic,
    "larger buffer": _part_of_a_buffer,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_others_take_the_generic_loop_and_say_so(generalist, caplog, reason):
    if reason == "peft":
        pytest.importorskip("peft")
    REFUSED[reason](generalist)
    session = Session(generalist, max_new_tokens=3)
    with caplog.at_level(logging.INFO, logger="inference.session"):
        (reply,) = session.generate([Conversation.ask("it")])
        session.generate([Conversation.ask("it")])
    assert reply.loop == "generic"
    (said,) = [record.getMessage() for record in caplog.records if record.name == "inference.session"]
    assert "generic decode loop" in said and reason in said
    with pytest.raises(CannotFuse, match=reason):
        FusedReader.of(generalist)


def test_probes_of_layers_are_served_and_autocast_is_not_fused(generalist):
    generalist.language_model.model(torch.tensor([[5]]), output_hidden_states=True)  # leaves hooks that do nothing
    asked = [Conversation.ask("where is the red 7?", images=[IMAGE])]
    session, seen = Session(generalist, max_new_tokens=5), []
    (plain,) = session.generate(asked)
    with hooked_layers(generalist.language_model, {0: lambda states: seen.append(states.shape)}):
        (watched,) = session.generate(asked)
    (again,) = session.generate(asked)
    assert seen and [item.loop for item in (plain, watched, again)] == ["fused", "generic", "fused"]
    assert plain.token_ids == watched.token_ids == again.token_ids
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "autocast" in choose_reader(generalist)[1]


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_half_precision_rounds_as_transformers_does(generalist, name):
    """Logits of a prompt and of a step; rotary frequencies stay exact when a model is cast."""
    model = language_model(name)
    exact = {key: value.clone() for key, value in model.model.named_buffers() if key.endswith("inv_freq")}
    generalist = with_model(generalist, model).to(torch.bfloat16)
    buffers = dict(model.model.named_buffers())
    assert exact and all(torch.equal(buffers[key], value) for key, value in exact.items())
    found = []
    with torch.inference_mode():
        begun = [generalist.embed(row) for row in prompts([40, 33])]
        for reader in (FusedReader.of(generalist), GenericReader(generalist)):
            reading = reader.read(begun, [None, None], None, 1)
            logits = [reading.logits]
            reading.append([7, 8])
            found.append(torch.stack([*logits, reading.logits]).float())
    spread = found[1].std()
    assert (found[0] - found[1]).abs().max() < 0.05 * spread and (found[0] - found[1]).abs().mean() < 0.01 * spread
