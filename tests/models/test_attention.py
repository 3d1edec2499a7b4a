"""Packed attention against transformers' own eager attention on the unpacked samples, in loss and gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from models.attention import Packing, flex_packed, switchyard_attention
from models.language import LanguageModel
from models.token_loss import linear_cross_entropy, supervised_rows

TINY = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
TINY |= {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "max_position_embeddings": 64}
GROUPED = TINY | {"num_key_value_heads": 2}
OPT = TINY | {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0, "attention_dropout": 0.0}
MODELS = {
    "llama": ("llama", TINY),
    "llama grouped": ("llama", GROUPED),
    "qwen2 window from its second layer": (
        "qwen2",
        GROUPED | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 8}),
    "mistral window": ("mistral", GROUPED | {"sliding_window": 4}),
    "gemma2 soft-cap and window": (
        "gemma2",
        GROUPED
        | {
            "head_dim": 8,
            "sliding_window": 4,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 8,
        },
    ),
    "gemma3 scaled embeddings": (
        "gemma3_text",
        GROUPED
        | {
            "head_dim": 8,
            "sliding_window": 4,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        },
    ),
    "phi partly rotated": ("phi", TINY | {"partial_rotary_factor": 0.5}),
    "phi3 joint projection and window": ("phi3", GROUPED | {"sliding_window": 4}),
    "smollm3 unrotated and window": (
        "smollm3",
        GROUPED | {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 4},
    ),
    "opt": ("opt", OPT),
    "opt narrow embeddings and norms after": (
        "opt",
        OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "gpt2": (
        "gpt2",
        {
            "vocab_size": 61,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "bos_token_id": None,
            "eos_token_id": None,
        },
    ),
}
LENGTHS = [7, 3, 12, 1, 5]


def eager_twin(model: LanguageModel) -> torch.nn.Module:
    torch.manual_seed(1)
    twin = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), attn_implementation="eager")
    twin.load_state_dict(model.model.state_dict())
    return twin


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def packed_inputs(vocab_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab_size, (1, sum(LENGTHS)), generator=generator)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.4, -100)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return ids, labels, positions


@pytest.mark.parametrize("name", MODELS)
def test_packed_equals_eager_on_unpacked_samples(name: str) -> None:
    torch.manual_seed(0)
    model = LanguageModel(*MODELS[name])
    with torch.no_grad():  # scores far from zero, so that caps and windows bite
        for parameter in model.parameters():
            parameter.mul_(3.0)
    twin = eager_twin(model)
    ids, labels, positions = packed_inputs(61)

    embeds = model.embed(ids).detach().requires_grad_()
    states = model(embeds, positions, LENGTHS)
    rows, targets = supervised_rows(labels[0], LENGTHS)
    softcap = getattr(model.config, "final_logit_softcapping", None)
    loss = linear_cross_entropy(states[rows], model.head_weight, targets, model.head_bias, softcap)
    loss.backward()

    expected = torch.zeros(())
    pieces = zip(ids[0].split(LENGTHS), labels[0].split(LENGTHS), embeds.detach()[0].split(LENGTHS), strict=True)
    gradients = []
    for sample_ids, sample_labels, sample_embeds in pieces:
        leaf = sample_embeds[None].clone().requires_grad_()
        attention_mask = torch.ones(1, len(sample_ids), dtype=torch.long)
        logits = twin(inputs_embeds=leaf, attention_mask=attention_mask).logits[0]
        sample = F.cross_entropy(logits[:-1], sample_labels[1:], reduction="sum", ignore_index=-100)
        gradients.append(torch.autograd.grad(sample, leaf, retain_graph=True, allow_unused=True)[0])
        expected = expected + sample
    expected.backward()

    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-5)
    assert relative(embeds.grad, torch.cat(gradients, dim=1)) <= 1e-5
    ours = torch.cat([p.grad.flatten() for p in model.model.parameters() if p.grad is not None])
    theirs = torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None])
    assert ours.shape == theirs.shape
    assert relative(ours, theirs) <= 1e-5


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_equals_attention_per_segment(window: int | None, softcap: float | None, sinks: bool) -> None:
    """What CUDA runs compiled, here without; Flex has no backward on a CPU, so that this is the forward alone."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, sum(LENGTHS), 8, generator=generator) * 3
    key, value = (torch.randn(1, 2, sum(LENGTHS), 8, generator=generator) * 3 for _ in range(2))
    s_aux = torch.randn(4, generator=generator) if sinks else None
    packing = Packing(LENGTHS, query.device)
    expected, _ = switchyard_attention(
        torch.nn.Module(), query, key, value, None, 0.5, 0.0, window, softcap, s_aux, packing
    )
    found = flex_packed(query, key, value, packing, 0.5, window, softcap, s_aux)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_leak_between_samples_would_be_seen() -> None:
    """The comparison has teeth: one segment over the same row gives another loss gradient."""
    torch.manual_seed(0)
    model = LanguageModel(*MODELS["llama"])
    ids, _, positions = packed_inputs(61)
    embeds = model.embed(ids)
    apart, together = model(embeds, positions, LENGTHS), model(embeds, positions, [sum(LENGTHS)])
    assert (apart - together).norm() / apart.norm() > 0.01


@pytest.mark.parametrize("name", MODELS)
def test_cached_left_padded_steps_equal_the_packed_forward(name: str) -> None:
    torch.manual_seed(0)
    model = LanguageModel(*MODELS[name]).eval()
    ids, _, positions = packed_inputs(61)
    packed = model(model.embed(ids), positions, LENGTHS).split(LENGTHS)
    for sample_ids, states in zip(ids[0].split(LENGTHS), packed, strict=True):
        length, padding = len(sample_ids), 3
        row = torch.cat([torch.zeros(padding, dtype=torch.long), sample_ids])[None]
        mask = (torch.arange(length + padding) >= padding).long()[None]
        position = (mask.cumsum(1) - 1).clamp(min=0)
        cut = padding + (length + 1) // 2
        first = model.forward_cached(model.embed(row[:, :cut]), mask[:, :cut], position[:, :cut], None)
        outputs, cache = [first.hidden_states], first.cache
        for t in range(cut, length + padding):
            step = model.forward_cached(model.embed(row[:, t : t + 1]), mask[:, : t + 1], position[:, t : t + 1], cache)
            outputs.append(step.hidden_states)
            cache = step.cache
        torch.testing.assert_close(torch.cat(outputs, dim=1)[0, padding:], states, rtol=1e-4, atol=1e-5)


def test_linear_attention_is_refused_by_name() -> None:
    config = GROUPED | {"layer_types": ["linear_attention", "full_attention", "full_attention"]}
    with pytest.raises(ValueError, match=r"layer 0: expected attention of .* got 'linear_attention'"):
        LanguageModel("qwen3_next", config)


def test_segments_must_fill_the_row() -> None:
    model = LanguageModel(*MODELS["llama"])
    ids, _, positions = packed_inputs(61)
    with pytest.raises(ValueError, match="segments of 7 tokens do not fill a row of 28"):
        model(model.embed(ids), positions, [7])
