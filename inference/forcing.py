"""Placing a head's learned queries in mid-generation."""

from __future__ import annotations

from collections import deque

from routers.vocabulary import Vocabulary


class ForcedQueries:
    """Follows one reply; once a task of link ``queries`` writes its anchor, its k query tokens must come next.

    The model never chooses a query token (labels are -100 there); the token after the last one is its choice again.

    Args:
        vocabulary: Ids of the task table's tokens.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._task_of_open = {token_id: task for task, token_id in vocabulary.open_ids.items()}
        self._close_ids = frozenset(vocabulary.close_ids.values())
        self._anchor_id = vocabulary.anchor_id
        self._query_ids = vocabulary.query_ids
        self._task: str | None = None
        self._queue: deque[int] = deque()

    def advance(self, token_id: int) -> None:
        """Take the token that was appended."""
        if self._queue:
            expected = self._queue.popleft()
            assert token_id == expected, f"expected query token {expected}, got {token_id}"
        elif token_id in self._task_of_open:
            self._task = self._task_of_open[token_id]
        elif token_id in self._close_ids:
            self._task = None
        elif token_id == self._anchor_id and self._task is not None:
            self._queue.extend(self._query_ids.get(self._task, ()))

    def next_token(self) -> int | None:
        """The query token that must follow, or None where the model chooses."""
        return self._queue[0] if self._queue else None
