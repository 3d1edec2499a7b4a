"""What a call's prompt asks for: its phrases, and the classes of a closed vocabulary among them."""

from __future__ import annotations

from collections.abc import Sequence

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
