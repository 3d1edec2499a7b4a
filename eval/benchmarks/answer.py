"""What a reply says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PARSED = "parsed"


@dataclass(frozen=True)
class Answer:
    """What was read from a reply.

    Args:
        value: Plain JSON, or None where ``status`` says why there is none.
        status: :data:`PARSED`, or in a few words why not, alike for alike cases so that they can be counted.
    """

    value: Any
    status: str = PARSED

    @property
    def parsed(self) -> bool:
        """Whether there is a value."""
        return self.status == PARSED
