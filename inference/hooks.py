"""Probes of a language model's layers: seen and changed from outside, and left as they were afterwards.

What stands before the layers has arguments of its own in :meth:`inference.session.Session.generate`:
``input_transform`` (what processors make of media: pixels), ``feature_transform`` (encoded media, projected tokens
among them). A run that uses none of them runs as if they did not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from models.language import LanguageModel

LayerHook = Callable[[Tensor], Tensor | None]
"""From a layer's output (B, S, d) to what goes on instead of it, or None to leave it."""


@contextmanager
def hooked_layers(language_model: LanguageModel, hooks: Mapping[int, LayerHook]) -> Iterator[None]:
    """See, or change, the residual stream after layers of a language model, in training and in decoding.

    With cached decoding a hook is called once per step, with the new positions only. Prompts of a session that begin
    alike are read in two pieces; a probe that wants whole prompts asks a session whose ``shared_prefix`` is 0. While a
    hook is set, a session takes the generic decode loop, in which there are layers to hook.

    Args:
        language_model: The model.
        hooks: Number of a layer, from 0 or from -1 backwards -> what is called with its output.

    Raises:
        ValueError: For a layer that does not exist.
    """
    blocks = language_model.blocks
    with ExitStack() as stack:
        for number, hook in hooks.items():
            if not -len(blocks) <= number < len(blocks):
                raise ValueError(f"layer: expected {-len(blocks)} to {len(blocks) - 1}, got {number}")
            handle = blocks[number].register_forward_hook(partial(_call, hook))
            stack.callback(handle.remove)
        yield


def _call(hook: LayerHook, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
    states = output if isinstance(output, Tensor) else output[0]
    changed = hook(states)
    if changed is None:
        return None
    return changed if isinstance(output, Tensor) else (changed, *output[1:])
