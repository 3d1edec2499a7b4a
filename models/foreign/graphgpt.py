"""GraphGPT's checkpoints (https://github.com/HKUDS/GraphGPT) to ours.

Two folders: the language model with the projector and the graph's tokens, as its trainer leaves it, and that of the
grounding stage, whose pickle holds the graph encoder. Nothing of theirs is needed,
and nothing in the files is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from models.checkpoint import CheckpointError
from models.foreign.conversion import (
    Conversion,
    language_model_config,
    llama_config,
    load_their_tokenizer,
    stored_tensors,
)
from models.foreign.inert_pickle import pickled_tensors

MODEL_TYPE = "GraphLlama"
PATCH, START, END = "<g_patch>", "<g_start>", "<g_end>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""What its training began every conversation with; its evaluation writes another text."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}{{ '" + SYSTEM.replace("'", "\\'") + " ' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}"
    "{% else %}{{ message['content'] + ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_TOWER, _PROJECTOR = "model.graph_tower.", "model.graph_projector."
_LAYER = {"qTrans": "query.weight", "kTrans": "key.weight", "vTrans": "value.weight"}


def load(source: str, tower: str | None = None) -> Conversion:
    """Read both folders.

    Args:
        source: That of the language model. A graph encoder among its tensors is left aside, as their evaluation does:
            it was frozen.
        tower: That of the grounding stage, with ``config.json`` and one ``.pkl``.

    Raises:
        CheckpointError: If either is no such folder, a file would execute something, or the encoder is another one.
    """
    config = _json(Path(source), "a folder of GraphGPT")
    if config.get("model_type") != MODEL_TYPE:
        raise CheckpointError(f"'{source}': expected model_type '{MODEL_TYPE}', got {config.get('model_type')!r}")
    if tower is None:
        raise CheckpointError("graphgpt: expected the folder of the grounding stage (--tower), got none")
    text, grounding = llama_config(config), _grounding_config(tower)
    tensors = _encoder_tensors(tower, position=bool(grounding["if_pos"]))
    for name, value in stored_tensors(source).items():
        if name.startswith(_PROJECTOR):
            tensors[f"projectors.graph.layers.0.{name.removeprefix(_PROJECTOR)}"] = value
        elif not name.startswith(_TOWER) and not name.endswith("rotary_emb.inv_freq"):
            tensors[f"language_model.model.{name}"] = value
    return Conversion(_our_config(config, text, grounding), tensors, _tokenizer(source, config, text))


def _json(folder: Path, expected: str) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"'{folder}': expected {expected} with config.json, got none")
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def _grounding_config(tower: str) -> dict[str, Any]:
    config = {"if_pos": False, "gnn_type": "gt"} | _json(Path(tower), "the folder of the grounding stage")
    if config["gnn_type"] != "gt":
        raise CheckpointError(f"'{tower}': gnn_type: expected 'gt', a graph transformer, got {config['gnn_type']!r}")
    needed = ("gnn_input", "gnn_output", "att_d_model", "gt_layers", "head", "att_norm")
    missing = [name for name in needed if name not in config]
    if missing:
        raise CheckpointError(f"'{tower}': expected {list(needed)} in config.json, got none of {missing}")
    return config


def _encoder_tensors(tower: str, *, position: bool) -> dict[str, Tensor]:
    """The graph encoder among the tensors of the grounding stage; its text tower is left aside."""
    files = sorted(Path(tower).glob("*.pkl"))
    if len(files) != 1:
        raise CheckpointError(f"'{tower}': expected one .pkl, got {[file.name for file in files]}")
    ours = {}
    for name, value in pickled_tensors(files[0], None).items():
        if not name.startswith("gnn.") or (name == "gnn.W_pos" and not position):
            continue
        new, converted = _encoder_tensor(name.removeprefix("gnn."), value)
        ours[f"encoders.graph.{new}"] = converted
    if not ours:
        raise CheckpointError(f"'{files[0]}': expected the graph encoder's tensors ('gnn.'), got none")
    return ours


def _encoder_tensor(name: str, value: Tensor) -> tuple[str, Tensor]:
    for old, new in (("W_P.", "input_projection."), ("inverW_P.", "output_projection.")):
        if name.startswith(old):
            return new + name.removeprefix(old), value
    if name == "W_pos":
        return "position", value
    layers, _, rest = name.partition(".")
    number, _, part = rest.partition(".")
    if layers == "gtLayers" and part in _LAYER:
        return f"layers.{number}.{_LAYER[part]}", value.T.contiguous()  # theirs multiply rows from the right
    if layers == "gtLayers" and part.startswith("norm."):
        return f"layers.{number}.{part}", value
    raise CheckpointError(f"graphgpt: a tensor that its graph transformer does not have: '{name}'")


def _our_config(config: Mapping[str, Any], text: LlamaConfig, grounding: Mapping[str, Any]) -> dict[str, Any]:
    encoder = {
        "feature_width": grounding["gnn_input"],
        "width": grounding["att_d_model"],
        "hidden_size": grounding["gnn_output"],
        "num_layers": grounding["gt_layers"],
        "num_heads": grounding["head"],
        "norm": bool(grounding["att_norm"]),
        "position": bool(grounding["if_pos"]),
        "messages_to": "source",
    }
    projector = {
        "input_size": grounding["gnn_output"],
        "output_size": text.hidden_size,
        "num_layers": 1,
        "norms": False,
    }
    ours = {
        "language_model": language_model_config(text),
        "encoders": {"graph": {"class_path": "encoders.graph.GraphGPTEncoder", "init_args": encoder}},
        "projectors": {"graph": {"class_path": "models.projectors.MLPProjector", "init_args": projector}},
        "heads": {},
    }
    return ours | ({"media_marks": {"graph": [START, END]}} if config.get("use_graph_start_end") else {})


def _tokenizer(source: str, config: Mapping[str, Any], text: LlamaConfig) -> Any:
    """Theirs, with the graph's tokens, which their own scripts add where they are missing."""
    tokenizer: Any = load_their_tokenizer(source, CHAT_TEMPLATE)
    tokenizer.add_tokens([PATCH], special_tokens=True)
    if config.get("use_graph_start_end"):
        tokenizer.add_tokens([START, END], special_tokens=True)
    if len(tokenizer) > text.vocab_size:
        raise CheckpointError(
            f"'{source}': expected rows for all {len(tokenizer)} tokens, the graph's included, got {text.vocab_size}"
        )
    return tokenizer
