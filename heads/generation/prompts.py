"""Prompts of any length for pipelines whose text encoders read 77 tokens, and what an encoder leaves unread."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerBase

_NO_LIMIT = 100_000
"""Tokenizers without a limit of their own say an astronomic number."""


def num_windows(pipeline: Any, prompt: str) -> int:
    """How many times a pipeline's text encoder reads for this prompt; 1 where it is not read in windows."""
    return len(_windows(pipeline.tokenizer, prompt)) if reads_windows(pipeline) else 1


def reads_windows(pipeline: Any) -> bool:
    """Whether a long prompt can be read in windows: one CLIP text encoder, whose states are all that is used of it."""
    arguments = inspect.signature(pipeline.__call__).parameters
    return (
        isinstance(getattr(pipeline, "tokenizer", None), CLIPTokenizer)
        and isinstance(getattr(pipeline, "text_encoder", None), CLIPTextModel)
        and getattr(pipeline, "tokenizer_2", None) is None
        and {"prompt_embeds", "negative_prompt_embeds"} <= set(arguments)
    )


def prompt_arguments(pipeline: Any, prompts: Sequence[str], negative: str = "") -> dict[str, Any]:
    """How to hand prompts to a pipeline.

    A prompt that fits goes as it is. A longer one is cut between words into windows, each is read by itself, and their
    states stand one after the other for the cross-attention, beside as many of the negative prompt.

    Args:
        pipeline: A pipeline of diffusers.
        prompts: One or more, all of them of as many windows (:func:`num_windows`).
        negative: What to go away from.
    """
    takes_negative = "negative_prompt" in inspect.signature(pipeline.__call__).parameters
    if not reads_windows(pipeline):
        return {"prompt": list(prompts), **({"negative_prompt": [negative] * len(prompts)} if takes_negative else {})}
    tokenizer = pipeline.tokenizer
    pieces = [_windows(tokenizer, prompt) for prompt in prompts]
    against = _windows(tokenizer, negative)
    most = max(len(against), *(len(windows) for windows in pieces))
    if most == 1:
        return {"prompt": list(prompts), "negative_prompt": [negative] * len(prompts)}
    embeds = [_encode(pipeline, windows, most) for windows in pieces]
    return {
        "prompt_embeds": torch.cat(embeds),
        "negative_prompt_embeds": _encode(pipeline, against, most).expand(len(prompts), -1, -1),
    }


def encoded_prompt(pipeline: Any, prompt: str) -> tuple[Tensor, Tensor]:
    """States (77 · windows, d) of a prompt's windows, and of as many empty ones.

    Raises:
        ValueError: If the pipeline's text encoder is not one that reads in windows.
    """
    if not reads_windows(pipeline):
        raise ValueError(f"expected a pipeline with a single CLIP text encoder, got {type(pipeline).__name__}")
    windows = _windows(pipeline.tokenizer, prompt)
    return _encode(pipeline, windows, len(windows))[0], _encode(pipeline, [], len(windows))[0]


def unread(pipeline: Any, prompt: str, limit: int | None = None) -> str:
    """The end of a prompt that no text encoder of a pipeline reads; empty if all of it is read.

    Args:
        pipeline: A pipeline of diffusers.
        prompt: The prompt.
        limit: Tokens that are read, special ones included; by default what tokenizers and pipeline say.
    """
    if limit is None and reads_windows(pipeline):
        return ""
    arguments = inspect.signature(pipeline.__call__).parameters
    sequence = arguments["max_sequence_length"].default if "max_sequence_length" in arguments else None
    rest = None
    for part in pipeline.components.values():
        if isinstance(part, PreTrainedTokenizerBase):
            own = limit or part.model_max_length
            if not isinstance(part, CLIPTokenizer) and isinstance(sequence, int) and limit is None:
                own = min(own, sequence)
            end = _beyond(part, prompt, own)
            rest = end if rest is None or len(end) < len(rest) else rest
    return rest or ""


def note_of(unread_text: str) -> str:
    """What a result tells about words that were not read."""
    return f"the expert's text encoder did not read the end of the prompt: '{unread_text}'"


def _beyond(tokenizer: PreTrainedTokenizerBase, prompt: str, limit: int) -> str:
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    kept = limit - tokenizer.num_special_tokens_to_add()
    if limit > _NO_LIMIT or len(ids) <= kept:
        return ""
    text = tokenizer.decode(ids[kept:], skip_special_tokens=True)
    assert isinstance(text, str)
    return text.strip()


def _windows(tokenizer: CLIPTokenizer, prompt: str) -> list[list[int]]:
    """Token ids without special ones, in windows that end between words where one of its words allows it."""
    ids: list[int] = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    size = tokenizer.model_max_length - 2
    windows = []
    while len(ids) > size:
        ends = [place for place, token in enumerate(tokenizer.convert_ids_to_tokens(ids[:size]), 1) if _ends(token)]
        cut = ends[-1] if ends else size
        windows.append(ids[:cut])
        ids = ids[cut:]
    return [*windows, ids]


def _ends(token: str) -> bool:
    return token.endswith("</w>")


@torch.no_grad()
def _encode(pipeline: Any, windows: Sequence[list[int]], count: int) -> Tensor:
    """(1, count · 77, d) states of the windows, and of empty ones for those that are missing."""
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    length = tokenizer.model_max_length
    rows, masks = [], []
    for ids in [*windows, *([[]] * (count - len(windows)))]:
        row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        masks.append([1] * len(row) + [0] * (length - len(row)))
        rows.append(row + [tokenizer.pad_token_id] * (length - len(row)))
    uses_mask = getattr(encoder.config, "use_attention_mask", False)
    mask = torch.tensor(masks, device=encoder.device) if uses_mask else None
    states = encoder(torch.tensor(rows, device=encoder.device), attention_mask=mask)[0]
    return states.flatten(0, 1)[None]
