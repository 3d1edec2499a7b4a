"""What a call's prompt asks for: its phrases, and the classes of a closed vocabulary among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from layers.calls import HeadContext

SEPARATOR = ";"


def phrases_of(prompt: str) -> list[str]:
    """The phrases of a prompt such as "a red car; the dog", in order, each once; one at least, which may be empty."""
    found = [" ".join(part.split()) for part in prompt.split(SEPARATOR)]
    return list(dict.fromkeys(phrase for phrase in found if phrase)) or [""]


def class_index(label: str, classes: Sequence[str], what: str = "label") -> int:
    """The place of a label among classes, letter case aside; of the only class for a label that is empty.

    Raises:
        ValueError: If no class has this name.
    """
    folded = [name.casefold() for name in classes]
    wanted = " ".join(label.split()).casefold()
    if wanted in folded:
        return folded.index(wanted)
    if not wanted and len(classes) == 1:
        return 0
    raise ValueError(f"{what}: expected one of {list(classes)}, got '{label}'")


def asked_phrases(
    contexts: Sequence[HeadContext], read: Callable[[Sequence[str]], list[Tensor]], project: nn.Module
) -> tuple[list[list[str]], list[Tensor | None]]:
    """What calls ask for, where the vocabulary is open.

    Args:
        contexts: One per call.
        read: Phrases -> (L, width) vectors of the words of each, such as :class:`heads.links.PromptEncoder`.
        project: (n, width) means of them -> vectors.

    Returns:
        Per call its phrases, and a vector of each.
    """
    classes = [phrases_of(context.call.prompt) for context in contexts]
    vectors = [words.mean(0) for words in read([phrase for own in classes for phrase in own])]
    return classes, list(project(torch.stack(vectors)).split([len(own) for own in classes]))
