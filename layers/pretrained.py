"""Models of transformers with their weights, or their shape alone."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig


def load_pretrained(model_class: Any, name: str, config: PretrainedConfig | None = None, **arguments: Any) -> Any:
    """Transformers' ``from_pretrained`` from safetensors; on the meta device the architecture without weights.

    A plan of batches, a check of patterns or an estimate of memory needs a model's shape and none of its weights, which
    ``from_pretrained`` refuses to build.

    Args:
        model_class: A class of transformers, an automatic one or one of an architecture.
        name: A local directory or hub id.
        config: The configuration, if not the one that is stored there.
        **arguments: More of ``from_pretrained``'s, such as ``revision``, and settings of the configuration.
    """
    arguments["trust_remote_code"] = False
    if torch.empty(0).device.type != "meta":
        given = {} if config is None else {"config": config}
        return model_class.from_pretrained(name, use_safetensors=True, **given, **arguments)
    automatic = hasattr(model_class, "from_config")
    implementation = arguments.pop("attn_implementation", None)
    if config is None:
        config_class = AutoConfig if automatic else model_class.config_class
        config = config_class.from_pretrained(name, **arguments)
    chosen = {} if implementation is None else {"attn_implementation": implementation}
    if automatic:
        return model_class.from_config(config, trust_remote_code=False, **chosen)
    return model_class._from_config(config, **chosen)
