"""Targets of pairs: who is compared with whom, as integers that processes can exchange."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from layers.head import TERMS, HeadTarget
from layers.layout import ItemLayout

ROLES = ("query", "positive", "negative")
QUERY, POSITIVE, NEGATIVE = range(3)
UNNAMED = 0


def name_number(name: str) -> int:
    """A name as 63 bits of its hash; 0 is no name's."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1 or 1


class PairTargetProcessor:
    """Turns the value of a ``pair`` target into integers.

    ``group`` joins a query and what belongs to it, ``role`` is one of :data:`ROLES`. ``item`` may name what a passage
    is, and what a query is about: passages of the same item are no negatives of it, whatever group they are of. A
    query brings one term of the loss, a passage none.
    """

    def __call__(self, value: Any, media: Sequence[ItemLayout]) -> HeadTarget:
        """Process a mapping; returns the scalars ``group``, ``role``, ``item`` and ``terms``.

        Raises:
            ValueError: If it is no pair.
        """
        role, item = self.text(value, "role"), self.text(value, "item", "")
        if role not in ROLES:
            raise ValueError(f"pair role: expected one of {', '.join(ROLES)}, got '{role}'")
        numbers = {
            "group": name_number(self.text(value, "group")),
            "role": ROLES.index(role),
            "item": name_number(item) if item else UNNAMED,
            TERMS: int(role == "query"),
        }
        return {name: torch.tensor(number) for name, number in numbers.items()}

    @staticmethod
    def text(value: Any, name: str, default: str | None = None) -> str:
        """A field of the pair.

        Raises:
            ValueError: If it is missing without a default, or no text.
        """
        found = value.get(name, default) if isinstance(value, Mapping) else None
        if not isinstance(found, str):
            raise ValueError(f"pair {name}: expected a text, got {found!r}")
        return found


def pair_numbers(targets: Sequence[HeadTarget], device: torch.device) -> Tensor:
    """(n, 3) group, role and item of each target."""
    rows = [torch.stack([target["group"], target["role"], target["item"]]) for target in targets]
    return torch.stack(rows).to(device) if rows else torch.zeros(0, 3, dtype=torch.int64, device=device)
