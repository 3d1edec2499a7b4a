"""Conversations that a session was asked, rendered, and the order in which they are answered."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from data.render import Rendered
from inference.conversation import Conversation


@dataclass(frozen=True)
class Asked:
    """One conversation.

    Args:
        index: Its place among those that were asked.
        conversation: The conversation.
        rendered: Its prompt.
        keys: Tell its media apart by their content.
    """

    index: int
    conversation: Conversation
    rendered: Rendered
    keys: tuple[Hashable, ...]


def neighbours(asked: Sequence[Asked]) -> Callable[[Asked], tuple[int, int, int, int]]:
    """Order by length, with conversations about the same media side by side."""
    first: dict[Hashable, int] = {}
    longest: dict[int, int] = {}
    groups = {item.index: first.setdefault(item.keys or item.index, item.index) for item in asked}
    for item in asked:
        group = groups[item.index]
        longest[group] = max(longest.get(group, 0), len(item.rendered.input_ids))
    return lambda item: (longest[groups[item.index]], groups[item.index], len(item.rendered.input_ids), item.index)
