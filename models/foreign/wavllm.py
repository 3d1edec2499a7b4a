"""WavLLM's checkpoints (fairseq ``.pt``, https://github.com/microsoft/SpeechT5/tree/main/WavLLM) to ours.

One pickle holds Whisper's encoder, WavLM-base, both connectors, LLaMA-2 under Meta's names, the low-rank updates and
the prompt gate. Nothing of fairseq is needed, and nothing in the file is executed. Weights of queries and keys, their
updates and their gates are brought from rotary pairs side by side to transformers' order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from models.adapters.prompt_gate import halves
from models.checkpoint import CheckpointError
from models.foreign.conversion import Conversion, load_their_tokenizer
from models.foreign.inert_pickle import pickled_tensors

SYSTEM = (
    "As a helpful language and speech assistant, you are able to understand the speech content provided by the user, "
    "and assist the user with a variety of tasks using natural language."
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST]<<SYS>>\\n" + SYSTEM + "\\n<</SYS>>\\n\\n' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
MARKS = ("<SPEECH>", " </SPEECH> ")
"""What stands before and after a clip in its prompts; as text, not as control tokens."""
HEAD_SIZE = 128
"""Width of a head of LLaMA-2."""
_WHISPER, _WAVLM, _LLAMA = "audio_encoder.", "wavlm_encoder.", "gpt_model.model_llama."
_LINEAR = {"attention.wq": "q_proj", "attention.wk": "k_proj", "attention.wv": "v_proj", "attention.wo": "o_proj"}
_FEED_FORWARD = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_UNUSED = ("audio_proj.",)  # a linear layer that their model builds and never calls


def load(source: str, tokenizer: str | None = None) -> Conversion:
    """Read a checkpoint.

    Args:
        source: The ``.pt`` file.
        tokenizer: A directory with LLaMA-2's tokenizer in transformers' format; the checkpoint has none.

    Raises:
        CheckpointError: If it is no such checkpoint, would execute something, or there is no tokenizer.
    """
    if tokenizer is None:
        raise CheckpointError("wavllm: expected a directory with LLaMA-2's tokenizer (--tokenizer), got none")
    theirs = pickled_tensors(source, "model")
    theirs = {name: value for name, value in theirs.items() if not name.startswith(_UNUSED)}
    needed = (
        f"{_LLAMA}tok_embeddings.weight",
        f"{_LLAMA}layers.0.attention.wq_lora_A",
        f"{_WHISPER}subsample.conv_layers.0.weight",
        "wavlm_audio_proj.weight",
    )
    missing = [name for name in needed if name not in theirs]
    if missing:
        raise CheckpointError(f"'{source}': expected a checkpoint of WavLLM, which has {missing}")
    ours = _speech(theirs) | _language(theirs)
    config = {
        "language_model": _language_config(theirs),
        "encoders": {"audio": _encoder_config(theirs)},
        "projectors": {"audio": _projector_config(theirs)},
        "heads": {},
        "media_marks": {"audio": list(MARKS)},
    }
    return Conversion(config, ours, load_their_tokenizer(tokenizer, CHAT_TEMPLATE))


def _speech(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Encoders and connectors."""
    ours = {}
    branches = {_WHISPER: "encoders.audio.whisper.encoder.", _WAVLM: "encoders.audio.wavlm.model."}
    for branch, (prefix, encoder) in enumerate(branches.items()):
        for name, value in theirs.items():
            if not name.startswith(prefix):
                continue
            place, rest = f"projectors.audio.branches.{branch}.", name.removeprefix(prefix)
            for old, new in (
                ("model.", encoder),
                ("subsample.conv_layers.", f"{place}convolutions."),
                ("adapter.down_layer.", f"{place}down."),
                ("adapter.up_layer.", f"{place}up."),
                ("adapter.layer_norm.", f"{place}norm."),
                ("projector.", f"{place}linear."),
                ("output_weights", "encoders.audio.wavlm.layer_logits"),
            ):
                if rest.startswith(old):
                    ours[_weight_norm(new + rest.removeprefix(old))] = value
                    break
            else:
                raise CheckpointError(f"wavllm: a tensor that WavLLM does not have: '{name}'")
    return ours | {f"projectors.audio.join.{end}": theirs[f"wavlm_audio_proj.{end}"] for end in ("weight", "bias")}


def _weight_norm(name: str) -> str:
    """PyTorch's present names of a weight norm's parts."""
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        name = name.replace(f".{old}", f".parametrizations.weight.{new}")
    return name


def _language(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ours, width = {}, theirs[f"{_LLAMA}tok_embeddings.weight"].shape[1]
    for name, value in theirs.items():
        if name.startswith(_LLAMA):
            new, converted = _language_tensor(name.removeprefix(_LLAMA), value, width)
            ours[f"language_model.{new}"] = converted
    return ours


def _language_tensor(name: str, value: Tensor, width: int) -> tuple[str, Tensor]:
    top = {
        "tok_embeddings.weight": "model.model.embed_tokens.weight",
        "norm.weight": "model.model.norm.weight",
        "output.weight": "model.lm_head.weight",
    }
    if name in top:
        return top[name], value
    gate = {"scale_fc_1": "first.0", "scale_fc_2": f"second.{width}", "scale_weight_attention": f"pool.{width}"}
    part, _, end = name.partition(".")
    if part in gate:
        return f"gate.{gate[part]}.{end}", value
    _, number, rest = name.split(".", 2)
    layer = f"model.model.layers.{number}."
    if rest in ("attention_norm.weight", "ffn_norm.weight"):
        return layer + {"a": "input_layernorm", "f": "post_attention_layernorm"}[rest[0]] + ".weight", value
    if rest.startswith("feed_forward."):
        return f"{layer}mlp.{_FEED_FORWARD[rest.split('.')[1]]}.weight", value
    for old, new in _LINEAR.items():
        if rest.startswith(old):
            return _attention_tensor(f"{layer}self_attn.{new}", rest.removeprefix(old), value)
    raise CheckpointError(f"wavllm: a tensor that WavLLM's language model does not have: '{name}'")


def _attention_tensor(place: str, end: str, value: Tensor) -> tuple[str, Tensor]:
    """A weight (out, in), or an update's A (in, r) or B (r, out), which peft holds transposed."""
    rotary = place.endswith(("q_proj", "k_proj"))
    if end == "_lora_A":
        return f"{place}.lora_A.default.weight", value.T
    if end == "_lora_B":
        return f"{place}.lora_B.default.weight", (halves(value, HEAD_SIZE) if rotary else value).T
    return f"{place}.base_layer.weight", halves(value.T, HEAD_SIZE).T if rotary else value


def _language_config(theirs: Mapping[str, Tensor]) -> dict[str, Any]:
    vocabulary, width = theirs[f"{_LLAMA}tok_embeddings.weight"].shape
    rank = theirs[f"{_LLAMA}layers.0.attention.wq_lora_A"].shape[1]
    config = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": len(theirs[f"{_LLAMA}layers.0.feed_forward.w1.weight"]),
        "num_hidden_layers": _count(theirs, f"{_LLAMA}layers."),
        "num_attention_heads": width // HEAD_SIZE,
        "num_key_value_heads": width // HEAD_SIZE,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    settings: dict[str, Any] = {"model_type": "llama", "config": config}
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    settings["lora"] = {"rank": rank, "alpha": rank, "dropout": 0.1, "targets": targets}
    first = theirs.get(f"{_LLAMA}scale_fc_1.weight")
    if first is not None:
        settings["prompt_gate"] = {"hidden_size": len(first), "interleaved": True}
    return settings


def _encoder_config(theirs: Mapping[str, Tensor]) -> dict[str, Any]:
    whisper, wavlm = f"{_WHISPER}model.", f"{_WAVLM}model."
    width, mels, _ = theirs[f"{whisper}conv1.weight"].shape
    wavlm_width, wavlm_conv = theirs[f"{wavlm}feature_projection.projection.weight"].shape
    convolutions = _count(theirs, f"{wavlm}feature_extractor.conv_layers.")
    positions = theirs[
        _present(theirs, f"{wavlm}encoder.pos_conv_embed.conv.", ("weight_v", "parametrizations.weight.original1"))
    ]
    arguments: dict[str, Any] = {
        "whisper": {
            "d_model": width,
            "num_mel_bins": mels,
            "encoder_layers": _count(theirs, f"{whisper}layers."),
            "encoder_attention_heads": width // 64,
            "encoder_ffn_dim": len(theirs[f"{whisper}layers.0.fc1.weight"]),
            "max_source_positions": len(theirs[f"{whisper}embed_positions.weight"]),
        },
        "wavlm": {
            "hidden_size": wavlm_width,
            "num_hidden_layers": _count(theirs, f"{wavlm}encoder.layers."),
            "num_attention_heads": theirs[f"{wavlm}encoder.layers.0.attention.rel_attn_embed.weight"].shape[1],
            "intermediate_size": len(theirs[f"{wavlm}encoder.layers.0.feed_forward.intermediate_dense.weight"]),
            "conv_dim": [wavlm_conv] * convolutions,
            "num_conv_pos_embeddings": positions.shape[2],
            "num_conv_pos_embedding_groups": wavlm_width // positions.shape[1],
        },
        "full_chunks": True,
        "fusion": "concat",
    }
    return {"class_path": "encoders.speech.SpeechEncoder", "init_args": arguments}


def _projector_config(theirs: Mapping[str, Tensor]) -> dict[str, Any]:
    convolutions = [
        [theirs[f"{prefix}subsample.conv_layers.{index}.weight"] for index in range(2)] for prefix in (_WHISPER, _WAVLM)
    ]
    arguments = {
        "input_size": sum(pair[0].shape[1] for pair in convolutions),
        "output_size": len(theirs["wavlm_audio_proj.weight"]),
        "branch_sizes": [pair[0].shape[1] for pair in convolutions],
        "channels": [[len(weight) for weight in pair] for pair in convolutions],
        "bottleneck": len(theirs[f"{_WHISPER}adapter.down_layer.weight"]),
        "branch_output": len(theirs[f"{_WHISPER}projector.weight"]),
        "norm": False,
    }
    return {"class_path": "models.projectors.ConvGLUProjector", "init_args": arguments}


def _count(theirs: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in theirs if name.startswith(prefix)})


def _present(theirs: Mapping[str, Tensor], prefix: str, ends: tuple[str, ...]) -> str:
    return next(prefix + end for end in ends if prefix + end in theirs)
