"""Reading with fused layers, and the choice between that and the generic way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from inference.past import Past
from inference.reading.generic import GenericReader
from inference.reading.reader import Reader, Reading, RowConditions
from models.fused.decoder import FusedDecoder, FusedReading
from models.fused.layers import CannotFuse
from models.generalist import Generalist
from models.language import LanguageModel


class FusedReader(Reader):
    """Reads with the fused layers of a language model, as it is now: open a new reader when it has changed.

    Args:
        language_model: The model.
        embed: Embeddings of token ids among which are ``query_ids``; those of the model by default.
        query_ids: Tokens that only ``embed`` knows.

    Raises:
        CannotFuse: If its layers cannot be fused.
    """

    loop = "fused"

    def __init__(
        self,
        language_model: LanguageModel,
        embed: Callable[[Tensor], Tensor] | None = None,
        query_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.language_model, self.query_ids = language_model, query_ids
        self.decoder = FusedDecoder(language_model)
        self._embed = language_model.embed if embed is None else embed

    @classmethod
    def of(cls, generalist: Generalist) -> FusedReader:
        """For a Generalist, its heads' queries included.

        Raises:
            CannotFuse: If its language model cannot be read so, or its steps are somebody else's.
        """
        language_model = generalist.language_model
        owners: list[tuple[nn.Module, type, tuple[str, ...]]] = [
            (generalist, Generalist, ("step", "embed")),
            (language_model, LanguageModel, ("forward_cached", "embed", "logits")),
        ]
        for owner, base, names in owners:
            for name in names:
                if name in vars(owner) or getattr(type(owner), name) is not getattr(base, name):
                    raise CannotFuse(f"somebody else's '{name}' stands in for {base.__name__}'s")
        queries = generalist.vocabulary.query_ids.values()
        return cls(language_model, generalist.embed, frozenset(token for ids in queries for token in ids))

    def read(
        self,
        prompts: Sequence[Tensor],
        pasts: Sequence[Past | None],
        conditions: RowConditions | None = None,
        room: int = 0,
    ) -> Reading:
        """See :meth:`inference.reading.reader.Reader.read`; what can be fused has no conditions."""
        read = [None if past is None else (past.keys, past.values) for past in pasts]
        return _FusedRows(self, self.decoder.read(prompts, read, room))

    def read_pasts(self, prompts: Sequence[Tensor], conditions: RowConditions | None = None) -> list[Past]:
        """See :meth:`inference.reading.reader.Reader.read_pasts`."""
        reading = self.decoder.read(prompts, [None] * len(prompts), predict=False)
        return [_past(reading, place) for place in range(len(prompts))]

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """(B, d) embeddings of tokens; those of queries are looked for only where there is one."""
        fed = torch.tensor(token_ids, device=self.language_model.head_weight.device)
        return self.language_model.embed(fed) if self.query_ids.isdisjoint(token_ids) else self._embed(fed)


class _FusedRows(Reading):
    keeps_in_place = True

    def __init__(self, reader: FusedReader, reading: FusedReading) -> None:
        self._reader, self._reading = reader, reading

    @property
    def logits(self) -> Tensor:
        return self._reading.logits

    @property
    def states(self) -> Tensor:
        return self._reading.states

    def append(self, token_ids: Sequence[int]) -> None:
        self._reading.append(self._reader.embed(token_ids))

    def keep(self, places: Sequence[int]) -> None:
        self._reading.keep(places)

    def past(self, place: int) -> Past:
        return _past(self._reading, place)


def _past(reading: FusedReading, place: int) -> Past:
    keys, values = reading.past(place)
    return Past(tuple(keys), tuple(values))


def choose_reader(generalist: Generalist, fused: bool = True) -> tuple[Reader, str]:
    """How a Generalist's prompts are read.

    Args:
        generalist: The model, as it is now.
        fused: Whether fused layers may be used where they can.

    Returns:
        The reader, and why it is not a :class:`FusedReader`; "" where it is.
    """
    if not fused:
        return GenericReader(generalist), "it was asked for"
    try:
        return FusedReader.of(generalist), ""
    except CannotFuse as reason:
        return GenericReader(generalist), str(reason)
