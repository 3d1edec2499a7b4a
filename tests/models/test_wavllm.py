"""A checkpoint as WavLLM's trainer writes it, against the network of its paper written out here."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WavLMConfig, WavLMModel, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from layers.layout import Layout
from layers.media import Audio
from models.__main__ import main as models_main
from models.checkpoint import CheckpointError
from models.foreign.inert_pickle import pickled_tensors
from models.generalist import Generalist
from tests.tiny import tiny_tokenizer

pytest.importorskip("peft")
DIM, HEAD, LAYERS, RANK, HIDDEN, FFN = 256, 128, 2, 4, 24, 64
WHISPER = {"d_model": 64, "encoder_layers": 1, "encoder_attention_heads": 1, "encoder_ffn_dim": 32}
WHISPER |= {"num_mel_bins": 80, "max_source_positions": 50}
WAVLM = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
WAVLM |= {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
CHANNELS = {"audio_encoder": (64, 40, 48), "wavlm_encoder": (32, 24, 48)}


def connector(prefix: str) -> dict[str, nn.Module]:
    size, first, second = CHANNELS[prefix]
    return {
        "subsample.conv_layers.0": nn.Conv1d(size, first, 3, 2, 1),
        "subsample.conv_layers.1": nn.Conv1d(first // 2, second, 3, 2, 1),
        "adapter.down_layer": nn.Linear(second // 2, 12),
        "adapter.up_layer": nn.Linear(12, second // 2),
        "adapter.layer_norm": nn.LayerNorm(second // 2),
        "projector": nn.Linear(second // 2, DIM // 2),
    }


def state_of(prefix: str, modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}.{key}": v for name, part in modules.items() for key, v in part.state_dict().items()}


def their_state(vocabulary: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = state_of("audio_encoder", {"model": WhisperEncoder(WhisperConfig(**WHISPER)), **connector("audio_encoder")})
    wavlm = WavLMModel(WavLMConfig(**WAVLM, apply_spec_augment=False))
    state |= state_of("wavlm_encoder", {"model": wavlm, **connector("wavlm_encoder")})
    state = {  # the names of the weight norm as of their day
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): v
        for name, v in state.items()
    }
    state["wavlm_encoder.output_weights"] = torch.randn(3)
    top = {"wavlm_audio_proj": nn.Linear(DIM, DIM), "audio_proj": nn.Linear(DIM // 2, DIM)}
    state |= {f"{name}.{key}": v for name, part in top.items() for key, v in part.state_dict().items()}
    llama = {"tok_embeddings.weight": torch.randn(vocabulary, DIM), "norm.weight": torch.rand(DIM) + 0.5}
    llama["output.weight"] = torch.randn(vocabulary, DIM) / 16
    for layer in range(LAYERS):
        place = f"layers.{layer}."
        for name in ("wq", "wk", "wv", "wo"):
            llama[f"{place}attention.{name}.weight"] = torch.randn(DIM, DIM) / 16
            llama[f"{place}attention.{name}_lora_A"] = torch.randn(DIM, RANK) / 16
            llama[f"{place}attention.{name}_lora_B"] = torch.randn(RANK, DIM)
        llama[f"{place}feed_forward.w1.weight"] = torch.randn(FFN, DIM) / 16
        llama[f"{place}feed_forward.w2.weight"] = torch.randn(DIM, FFN) / 8
        llama[f"{place}feed_forward.w3.weight"] = torch.randn(FFN, DIM) / 16
        llama |= {f"{place}{name}_norm.weight": torch.rand(DIM) + 0.5 for name in ("attention", "ffn")}
    gate = {"scale_fc_1": nn.Linear(DIM, HIDDEN), "scale_fc_2": nn.Linear(HIDDEN, DIM)}
    gate["scale_weight_attention"] = nn.Linear(DIM, 1)
    llama |= {f"{name}.{key}": v for name, part in gate.items() for key, v in part.state_dict().items()}
    state |= {f"gpt_model.model_llama.{name}": v for name, v in llama.items()}
    return {name: value.detach().clone() for name, value in state.items()}


def rotate(x: Tensor) -> Tensor:
    """(T, heads, head) with pairs side by side."""
    angles = torch.outer(torch.arange(len(x)).float(), 10_000.0 ** (-torch.arange(0, HEAD, 2).float() / HEAD))
    turned = (
        torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        * torch.polar(torch.ones_like(angles), angles)[:, None]
    )
    return torch.view_as_real(turned).flatten(-2)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def their_llama(state: dict[str, Tensor], h: Tensor, gate: Tensor | None) -> Tensor:
    """(T, d) states before the last norm; without a gate the updates are off."""
    s = {name.removeprefix("gpt_model.model_llama."): value for name, value in state.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        plain = x @ s[f"{name}.weight"].T
        return plain if gate is None else plain + x @ s[f"{name}_lora_A"] @ s[f"{name}_lora_B"] * gate

    for layer in range(LAYERS):
        place = f"layers.{layer}."
        x = norm(h, s[f"{place}attention_norm.weight"])
        q, k, v = (linear(x, f"{place}attention.w{n}").unflatten(-1, (-1, HEAD)) for n in "qkv")
        attended = F.scaled_dot_product_attention(
            *(i.transpose(0, 1) for i in (rotate(q), rotate(k), v)), is_causal=True
        )
        h = h + linear(attended.transpose(0, 1).flatten(1), f"{place}attention.wo")
        x = norm(h, s[f"{place}ffn_norm.weight"])
        w1, w2, w3 = (s[f"{place}feed_forward.w{i}.weight"] for i in (1, 2, 3))
        h = h + (F.silu(x @ w1.T) * (x @ w3.T)) @ w2.T
    return h


def their_gate(state: dict[str, Tensor], instruction: Tensor) -> Tensor:
    s = {name.removeprefix("gpt_model.model_llama."): value for name, value in state.items()}
    h = their_llama(state, s["tok_embeddings.weight"][instruction], None)
    scale = F.linear(
        F.gelu(F.linear(h, s["scale_fc_1.weight"], s["scale_fc_1.bias"])), s["scale_fc_2.weight"], s["scale_fc_2.bias"]
    )
    weights = F.linear(scale, s["scale_weight_attention.weight"], s["scale_weight_attention.bias"]).softmax(0)
    return (scale * weights).sum(0).relu().clamp(max=3)


def their_connector(state: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    s = {name.removeprefix(f"{prefix}."): value for name, value in state.items() if name.startswith(prefix)}
    x = x.T[None]
    for index in range(2):
        place = f"subsample.conv_layers.{index}."
        x = F.glu(F.conv1d(x, s[f"{place}weight"], s[f"{place}bias"], 2, 1), dim=1)
    x = x[0].T
    down = F.gelu(F.linear(x, s["adapter.down_layer.weight"], s["adapter.down_layer.bias"]))
    up = F.linear(down, s["adapter.up_layer.weight"], s["adapter.up_layer.bias"])
    x = F.layer_norm(up, up.shape[-1:], s["adapter.layer_norm.weight"], s["adapter.layer_norm.bias"]) + x
    return F.linear(x, s["projector.weight"], s["projector.bias"])


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Generalist]:
    folder = tmp_path_factory.mktemp("wavllm")
    state = their_state(640)
    settings = argparse.Namespace(task="speechllm_task", lora_r=RANK)
    torch.save(
        {"args": settings, "cfg": {"model": settings}, "model": state, "extra_state": {"epoch": 3}}, folder / "final.pt"
    )
    arguments = ["convert", "wavllm", str(folder / "final.pt"), "--out", str(folder / "ours")]
    assert models_main(arguments) == 2
    assert models_main([*arguments, "--tokenizer", tiny_tokenizer(folder)]) == 0
    return state, Generalist.from_pretrained(folder / "ours")


def test_logits_and_gates_equal_theirs(converted: tuple[dict[str, Tensor], Generalist]) -> None:
    state, ours = converted
    model = ours.language_model
    ids, instruction = torch.arange(5, 25), torch.arange(40, 47)
    gate = their_gate(state, instruction)
    assert 0.1 < (gate == 0).float().mean() < 0.9
    h = their_llama(state, state["gpt_model.model_llama.tok_embeddings.weight"][ids], gate)
    expected = norm(h, state["gpt_model.model_llama.norm.weight"]) @ state["gpt_model.model_llama.output.weight"].T
    gates = model.gates([instruction])
    assert gates is not None
    torch.testing.assert_close(gates.values[DIM][0], gate, atol=1e-4, rtol=1e-4)
    found = model.logits(model(model.embed(ids)[None], torch.arange(20)[None], [20], gates))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_speech_tokens_equal_theirs(converted: tuple[dict[str, Tensor], Generalist]) -> None:
    state, ours = converted
    encoder: Any = ours.encoders["audio"]
    audio = Audio(torch.randn(12_000, generator=torch.Generator().manual_seed(1)) * 0.1, 16_000)
    item, layout = encoder.processor(audio)
    features = encoder(encoder.collate([item]), Layout([layout]))
    tokens, projected = ours.projectors["audio"](features, Layout([layout]))
    whisper = WhisperEncoder(WhisperConfig(**WHISPER)).eval()
    whisper.load_state_dict(
        {n.removeprefix("audio_encoder.model."): v for n, v in state.items() if n.startswith("audio_encoder.model.")}
    )
    theirs = whisper(item["input_features"][None]).last_hidden_state[0, : layout.num_features]
    torch.testing.assert_close(features[:, :64], theirs, atol=1e-4, rtol=1e-4)
    wavlm: Any = WavLMModel(WavLMConfig(**WAVLM)).eval()
    wavlm.load_state_dict(encoder.wavlm.model.state_dict())
    padded = F.pad(item["waveform"], (0, layout.num_features * 320 + 80 - 12_000))
    layers = wavlm(padded[None], output_hidden_states=True).hidden_states
    weights = state["wavlm_encoder.output_weights"].softmax(0)
    second = sum(weight * layer[0] for weight, layer in zip(weights, layers, strict=True))
    joined = torch.cat(
        [their_connector(state, "audio_encoder", theirs), their_connector(state, "wavlm_encoder", second)], -1
    )
    expected = F.linear(joined, state["wavlm_audio_proj.weight"], state["wavlm_audio_proj.bias"])
    torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=1e-4)
    assert projected.total == -(-layout.num_features // 4)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch {}".format(Path(__file__).with_name("executed")),)


def test_what_is_no_checkpoint_or_would_run_code(tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    torch.save({"model": {"a": torch.ones(2)}, "args": Malicious()}, path)
    with pytest.raises(CheckpointError, match=r"would run code: expected tensors and settings, got \['posix.system'\]"):
        pickled_tensors(path, "model")
    assert not Path(__file__).with_name("executed").exists()
    torch.save({"weights": {}}, path)
    with pytest.raises(CheckpointError, match="expected a dictionary 'model' of tensors, got NoneType"):
        pickled_tensors(path, "model")
    torch.save({"model": {"a": torch.ones(200)}}, path)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(CheckpointError, match="expected a checkpoint of PyTorch"):
        pickled_tensors(path, "model")


def test_settings_come_to_nothing(tmp_path: Path) -> None:
    path = tmp_path / "good.pt"
    torch.save({"model": {"a": torch.arange(3)}, "args": argparse.Namespace(lr=[1, {"x": Path("y")}])}, path)
    assert torch.equal(pickled_tensors(path, "model")["a"], torch.arange(3))


def test_prompts_have_the_clip_between_their_marks(converted: tuple[dict[str, Tensor], Generalist]) -> None:
    assert converted[1].plan().media_marks == {"audio": ("<SPEECH>", " </SPEECH> ")}


def test_another_model(tmp_path: Path) -> None:
    torch.save({"model": {"layer.weight": torch.ones(2)}}, tmp_path / "other.pt")
    arguments = ["convert", "wavllm", str(tmp_path / "other.pt"), "--out", str(tmp_path / "out")]
    assert models_main([*arguments, "--tokenizer", tiny_tokenizer(tmp_path)]) == 2
    assert not (tmp_path / "out").exists()
