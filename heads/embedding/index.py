"""An exact index: every item is compared with every query."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from os import PathLike

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

Scorer = Callable[[Tensor, Tensor], Tensor]
"""From queries (n, d) and items (m, d) to scores (n, m), of which more is better."""

_CHUNK = 65_536


def dot(queries: Tensor, items: Tensor) -> Tensor:
    """(n, m) dot products; cosines of unit vectors."""
    return queries @ items.T


class ExactIndex:
    """Vectors with the names of what they stand for.

    Args:
        vectors: (M, d); kept as float32, on the device that they are on.
        items: M different names.

    Raises:
        ValueError: If names and vectors are not as many, a name comes twice, or a vector is not finite.
    """

    def __init__(self, vectors: Tensor, items: Sequence[str]) -> None:
        if vectors.ndim != 2 or len(vectors) != len(items):
            raise ValueError(f"index: expected a vector per item (M, d), got {tuple(vectors.shape)} of {len(items)}")
        self.vectors, self.items = vectors.detach().float(), tuple(items)
        self._rows = {item: row for row, item in enumerate(self.items)}
        if len(self._rows) != len(self.items):
            twice = next(item for row, item in enumerate(self.items) if self._rows[item] != row)
            raise ValueError(f"index: expected different items, got '{twice}' twice")
        if not bool(self.vectors.isfinite().all()):
            bad = int((~self.vectors.isfinite()).any(dim=1).nonzero()[0, 0])
            raise ValueError(f"index: expected finite vectors, got one of '{self.items[bad]}' that is not")

    def __len__(self) -> int:
        return len(self.items)

    def __contains__(self, item: object) -> bool:
        return item in self._rows

    @property
    def size(self) -> int:
        """Width d of the vectors."""
        return int(self.vectors.shape[1])

    def row(self, item: str) -> int:
        """The row of an item.

        Raises:
            ValueError: If it is not in the index.
        """
        if item not in self._rows:
            raise ValueError(f"index: expected one of its {len(self)} items, got '{item}'")
        return self._rows[item]

    def to(self, device: torch.device | str) -> ExactIndex:
        """The same index on a device."""
        return ExactIndex(self.vectors.to(device), self.items)

    def with_items(self, vectors: Tensor, items: Sequence[str]) -> ExactIndex:
        """A larger index; what is in this one is not computed again."""
        return ExactIndex(torch.cat([self.vectors, vectors.to(self.vectors)]), [*self.items, *items])

    def chunks(self, size: int = _CHUNK) -> Iterator[tuple[int, Tensor]]:
        """The first row, and the vectors, of one stretch after the other."""
        return ((start, self.vectors[start : start + size]) for start in range(0, len(self), size))

    def search(self, queries: Tensor, k: int, score: Scorer = dot, chunk: int = _CHUNK) -> tuple[Tensor, Tensor]:
        """The best items of each query, whatever the chunks; of equal ones those that come first.

        Args:
            queries: (n, d).
            k: How many, at most; fewer where the index has fewer.
            score: Compares queries and items.
            chunk: Items whose scores are held in memory at once.

        Returns:
            Scores (n, k), the highest first, and the rows (n, k) of the items.

        Raises:
            ValueError: If k is less than 1, or the queries have another width.
        """
        if k < 1 or queries.ndim != 2 or queries.shape[1] != self.size:
            raise ValueError(f"search: expected k >= 1 and queries (n, {self.size}), got {k}, {tuple(queries.shape)}")
        queries = queries.to(self.vectors)
        best = queries.new_zeros(len(queries), 0)
        rows = torch.zeros(len(queries), 0, dtype=torch.int64, device=queries.device)
        for start, vectors in self.chunks(chunk):
            found, places = _top(score(queries, vectors).float(), min(k, len(vectors)))
            # Earlier items stand before later ones, and the sort is stable.
            best, order = torch.cat([best, found], dim=1).sort(dim=1, descending=True, stable=True)
            rows = torch.cat([rows, places + start], dim=1).gather(1, order)[:, :k]
            best = best[:, :k]
        return best, rows

    def save(self, path: str | PathLike[str]) -> None:
        """Write the index as safetensors: ``vectors``, and ``items`` as the bytes of a JSON list."""
        names = torch.frombuffer(bytearray(json.dumps(self.items, ensure_ascii=False).encode()), dtype=torch.uint8)
        save_file({"vectors": self.vectors.cpu().contiguous(), "items": names}, path)

    @classmethod
    def load(cls, path: str | PathLike[str], device: torch.device | str = "cpu") -> ExactIndex:
        """The inverse of :meth:`save`.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If it is no index.
        """
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            items = json.loads(tensors["items"].numpy().tobytes())
            vectors = tensors["vectors"].to(device)
        except (SafetensorError, KeyError, ValueError) as error:
            told = f"{type(error).__name__}: {error}"
            raise ValueError(f"'{path}': expected an index of vectors and items, got {told}") from None
        return cls(vectors, items)


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row in order, of equal ones the first; topk alone takes any of them."""
    if k == scores.shape[1]:
        return scores.sort(dim=1, descending=True, stable=True)
    values, _ = scores.topk(k, dim=1)
    reaching = scores >= values[:, -1:]
    crowded = reaching.sum(dim=1) > k
    if bool(crowded.any()):  # more than k reach the last place
        above = scores > values[:, -1:]
        ties = reaching & ~above
        room = k - above.sum(dim=1, keepdim=True)
        reaching = above | (ties & (ties.cumsum(dim=1) <= room))
    places = reaching.nonzero()[:, 1].view(-1, k)
    found, order = scores.gather(1, places).sort(dim=1, descending=True, stable=True)
    return found, places.gather(1, order)
