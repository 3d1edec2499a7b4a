"""What every conversion gives: a configuration of ours, its tensors, and a tokenizer with the task table's tokens."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from layers.pretrained import load_pretrained
from models.build import build_generalist
from models.checkpoint import CheckpointError, save_checkpoint
from models.foreign.inert_pickle import pickled_tensors
from models.generalist import Generalist
from models.on_meta import parameters_on_meta
from models.token_rows import TokenRows
from routers.tasks import TaskTable
from routers.vocabulary import add_task_tokens


@dataclass
class Conversion:
    """A model of others in our terms.

    Args:
        config: The Generalist's configuration, without tokenizer and tasks.
        tensors: Its parameters by name, new tokens' rows apart.
        tokenizer: Theirs, unchanged.
    """

    config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    tokenizer: PreTrainedTokenizerBase


def write(conversion: Conversion, tasks: TaskTable, out: str | Path) -> Path:
    """Write a checkpoint directory; the vocabulary gets rows for the table's tokens.

    Args:
        conversion: The model.
        tasks: The task table; an empty one for a model that only writes.
        out: The directory.

    Raises:
        CheckpointError: If a tensor is missing, unexpected or of another shape, naming them; nothing is written then.
    """
    tokenizer, first = conversion.tokenizer, len(conversion.tokenizer)
    add_task_tokens(tokenizer, tasks)
    config = {**conversion.config, "tasks": tasks.to_dict()}
    if len(tokenizer) > first:
        new = {"first": first, "count": len(tokenizer) - first}
        config["language_model"] = {**config["language_model"], "new_tokens": new}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        config["tokenizer"] = folder
        with parameters_on_meta():
            generalist = build_generalist(config)
        fill(generalist, conversion.tensors)
        return save_checkpoint(generalist, config, out)


def fill(generalist: Generalist, tensors: Mapping[str, Tensor]) -> None:
    """Give a model built by :func:`models.on_meta.parameters_on_meta` its tensors; new tokens' rows begin as always.

    Raises:
        CheckpointError: Naming what is missing, unexpected or of another shape.
    """
    model = generalist.language_model
    tied = bool(model.config.tie_word_embeddings)
    wanted = {name: value for name, value in generalist.named_parameters() if not _is_new(name)}
    wanted |= {name: value for name, value in generalist.state_dict().items() if name in tensors}
    given = {name: value for name, value in tensors.items() if not (tied and name.endswith("lm_head.weight"))}
    missing, unexpected = sorted(set(wanted) - set(tensors)), sorted(set(given) - set(wanted))
    wrong = [
        f"{name} {tuple(value.shape)} instead of {tuple(wanted[name].shape)}"
        for name, value in given.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    if missing or unexpected or wrong:
        raise CheckpointError(
            f"the weights are not those of this architecture: missing {missing[:5]}, unexpected {unexpected[:5]}, "
            f"of another shape {wrong[:5]}"
        )
    generalist.load_state_dict(dict(given), strict=False, assign=True)
    model.model.tie_weights()
    rows = model.new_tokens
    if rows is not None:
        output = None if rows.output_embedding is None else model.head_weight
        table: Any = model.model.get_input_embeddings()
        model.new_tokens = TokenRows(rows.first, rows.count, table.weight, output)
    empty = [name for name, value in generalist.named_parameters() if value.is_meta]
    if empty:
        raise CheckpointError(f"no weights for {empty[:5]}")


def load_their_config(source: str, model_types: Collection[str]) -> Any:
    """The configuration of a directory.

    Raises:
        CheckpointError: If it is no model directory of transformers, or one of another architecture.
    """
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{source}': expected a model directory of transformers: {error}") from None
    if config.model_type not in model_types:
        raise CheckpointError(f"'{source}': expected one of {sorted(model_types)}, got '{config.model_type}'")
    return config


def load_their_model(model_class: type[PreTrainedModel], source: str) -> Any:
    """The model of a directory with safetensors.

    Raises:
        CheckpointError: If its weights cannot be read.
    """
    try:
        return load_pretrained(model_class, source, dtype="auto")
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"'{source}': the weights cannot be read: {error}") from None


def stored_tensors(folder: str | Path) -> dict[str, Tensor]:
    """All tensors of a folder's shards, safetensors or pickles; nothing in them is executed.

    Raises:
        CheckpointError: If there are none, one that the index names is missing, or cannot be read.
    """
    tensors: dict[str, Tensor] = {}
    for file in _shards(Path(folder)):
        if not file.is_file():
            raise CheckpointError(f"'{file}': expected a shard that the index names, got none")
        if file.suffix != ".safetensors":
            tensors |= pickled_tensors(file, None)
            continue
        try:
            tensors |= load_file(file)
        except SafetensorError as error:
            raise CheckpointError(f"'{file}': the weights cannot be read: {error}") from None
    return tensors


def _shards(folder: Path) -> list[Path]:
    for name in _INDICES:
        if (folder / name).is_file():
            return sorted({folder / file for file in json.loads((folder / name).read_text())["weight_map"].values()})
    found = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    if not found:
        raise CheckpointError(f"'{folder}': expected model.safetensors, pytorch_model.bin or an index, got none")
    return found[:1]


def llama_config(config: Mapping[str, Any]) -> LlamaConfig:
    """LLaMA's settings among those of a model built on it."""
    older = {"rope_theta", "rope_scaling"}  # names that LlamaConfig takes and no longer has
    known = (set(LlamaConfig().to_dict()) | older) - {"model_type", "architectures"}
    return LlamaConfig(**{name: value for name, value in config.items() if name in known})


def language_model_tensors(model: Any) -> dict[str, Tensor]:
    """The tensors of a model's language model under our names."""
    tensors = prefixed("language_model.model.model.", model.model.language_model)
    return tensors | prefixed("language_model.model.lm_head.", model.lm_head)


def only_parts(generalist: Generalist, kind: str, model_type: str) -> tuple[Any, Any]:
    """The encoder and the projector of the only modality that an architecture has.

    Raises:
        CheckpointError: If the model has other parts, or its encoder wraps no tower.
    """
    given = [*sorted(generalist.encoders), *sorted(generalist.heads)]
    if given != [kind] or not hasattr(generalist.encoders[kind], "tower"):
        raise CheckpointError(f"export to '{model_type}': expected an {kind} tower and no heads, got {given}")
    return generalist.encoders[kind], generalist.projectors[kind]


def export_model(
    generalist: Generalist,
    model_class: type[PreTrainedModel],
    config: Any,
    tensors: Mapping[str, Tensor],
    source: str,
    out: str | Path,
) -> None:
    """Write a converted model in transformers' format again.

    Args:
        generalist: The model.
        model_class: Its class.
        config: Its configuration.
        tensors: Encoder and projector under its names; the language model's are added here.
        source: The directory that it was converted from: tokenizer and processor are taken from there.
        out: The directory to write.

    Raises:
        CheckpointError: If the model has parts that the architecture has no place for.
    """
    language_model = generalist.language_model
    own = prefixed("model.language_model.", language_model.model.base_model)
    own["lm_head.weight"] = language_model.head_weight.detach()
    model = model_class(config)
    missing, unexpected = model.load_state_dict({**own, **tensors}, strict=False, assign=True)
    missing = [name for name in missing if not (name == "lm_head.weight" and config.tie_word_embeddings)]
    if missing or unexpected:
        raise CheckpointError(f"export to '{config.model_type}': missing {missing[:5]}, unexpected {unexpected[:5]}")
    model.save_pretrained(str(out))
    load_their_tokenizer(source, "{{ '' }}").save_pretrained(str(out))
    for name in _SETTINGS_FILES:
        if (Path(source) / name).is_file():
            (Path(out) / name).write_bytes((Path(source) / name).read_bytes())


def language_model_config(config: PretrainedConfig) -> dict[str, Any]:
    """Architecture and settings of a language model, as :class:`models.language.LanguageModel` takes them."""
    return {"model_type": config.model_type, "config": settings_of(config)}


def settings_of(config: PretrainedConfig) -> dict[str, Any]:
    """What a configuration says beside its architecture's defaults."""
    return {name: value for name, value in config.to_diff_dict().items() if name not in _NOT_SETTINGS}


def load_their_tokenizer(source: str, chat_template: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory.

    Args:
        source: The directory.
        chat_template: Instead of its own.

    Raises:
        CheckpointError: If there is none, or it lacks an end-of-turn token.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{source}': expected a tokenizer beside the weights: {error}") from None
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if tokenizer.chat_template is None or tokenizer.eos_token_id is None:
        raise CheckpointError(f"'{source}': expected a chat template and an end-of-turn (eos) token, got none")
    return tokenizer


def prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and stored buffers under another name, sharing memory."""
    return {f"{prefix}{name}": value.detach() for name, value in module.state_dict().items()}


def _is_new(name: str) -> bool:
    return name.startswith("language_model.new_tokens.")


_NOT_SETTINGS = {"model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "_name_or_path"}
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SETTINGS_FILES = ("preprocessor_config.json", "processor_config.json", "chat_template.jinja", "chat_template.json")
