"""Reading prompts and writing on, with fused layers over a cache in place; no module of a layer is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor

from models.fused.cache import KeysValues, StaticCache, added_mask, attend_last, attend_run
from models.fused.layers import FusedLayer, fuse, rope_tables
from models.language import LanguageModel

_Rope = dict[str, tuple[Tensor, Tensor]]


class FusedDecoder:
    """A language model whose layers are read as few large operations; as of now, so open a new one when it changed.

    Prompts of different lengths are read one after the other in one row of tokens, so that none is padded; of the last
    layer only the last positions are computed. Equal to the model's own cached forward up to the order of sums.

    Args:
        language_model: The model, in evaluation mode.

    Raises:
        CannotFuse: See :func:`models.fused.layers.fuse`.
    """

    def __init__(self, language_model: LanguageModel) -> None:
        self.language_model = language_model
        self.layers, self.norm = fuse(language_model)
        self.num_heads: int = language_model.config.num_attention_heads
        self.num_kv_heads: int = language_model.config.num_key_value_heads
        self.head_size = self.layers[0].qkv.weight.shape[0] // (self.num_heads + 2 * self.num_kv_heads)

    def read(
        self, prompts: Sequence[Tensor], pasts: Sequence[KeysValues | None], room: int = 0, predict: bool = True
    ) -> FusedReading:
        """Read a batch of prompts.

        Args:
            prompts: (L, d) embeddings that are still to be read, at least one each.
            pasts: What was read before them.
            room: Positions to come.
            predict: Whether the states of the last positions are wanted, and not only what was read.
        """
        return FusedReading(self, prompts, pasts, room, predict)


@dataclass(frozen=True)
class _Run:
    """Neighbouring rows that are alike: n rows, of each L positions to be read after the same number of known ones."""

    rows: slice
    tokens: slice
    count: int
    length: int
    known: int


class FusedReading:
    """A batch of rows that is being read; see :meth:`FusedDecoder.read`.

    Attributes:
        states: (B, d) after the final norm, at each row's last position.
    """

    def __init__(
        self,
        decoder: FusedDecoder,
        prompts: Sequence[Tensor],
        pasts: Sequence[KeysValues | None],
        room: int,
        predict: bool,
    ) -> None:
        self._decoder, self._layers = decoder, decoder.layers
        known = [0 if past is None else past[0][0].shape[1] for past in pasts]
        lengths = [len(prompt) for prompt in prompts]
        ends = [a + b for a, b in zip(known, lengths, strict=True)]
        self._width, like = max(ends), prompts[0]
        self._padding = [self._width - end for end in ends]
        size = (len(prompts), decoder.num_kv_heads, self._width, decoder.head_size)
        self._cache = StaticCache(len(self._layers), size, room, like.dtype, like.device)
        self._cache.begin(self._padding, pasts)
        self._rope = rope_tables(decoder.language_model, max(ends) + room, like.dtype)
        self._positions = torch.tensor(ends, device=like.device)
        self._mask_padding()
        self.states = self._read(prompts, _runs(known, lengths), predict)

    @property
    def logits(self) -> Tensor:
        """(B, V) of the tokens that come next."""
        return self._decoder.language_model.logits(self.states)

    def append(self, inputs_embeds: Tensor) -> None:
        """Read one more position of every row, (B, d)."""
        column = self._width
        if column == self._cache.columns:
            self._cache.reserve(column + 1)
            self._mask_padding()
        rope = self._rope_at(self._positions)
        self._positions = self._positions + 1
        self._width += 1
        x = inputs_embeds
        for number, layer in enumerate(self._layers):
            query, keys, values = self._project(layer, x, rope)
            self._cache.keys[number].select(2, column).copy_(keys)
            self._cache.values[number].select(2, column).copy_(values)
            x = _finish(layer, x, self._attend_last(number, layer, query))
        self.states = self._decoder.norm(x)

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these rows in this order; a row may be taken several times."""
        index = torch.tensor(places, device=self._positions.device)
        self._cache.keep(places)
        self._positions, self.states = self._positions[index], self.states[index]
        self._padding = [self._padding[place] for place in places]
        self._mask_padding()

    def past(self, place: int) -> KeysValues:
        """Copies of what was read of a row."""
        return self._cache.row(place, slice(self._padding[place], self._width))

    def _mask_padding(self) -> None:
        """Columns that no row needs are left out of attention; those that some rows do not need are masked."""
        self._first, self._last = min(self._padding), max(self._padding)
        self._mask: Tensor | None = None
        if self._last > self._first:
            like = self._cache.keys[0]
            columns = torch.arange(self._cache.columns, device=like.device)
            padding = torch.tensor(self._padding, device=like.device)[:, None]
            mask = like.new_zeros(len(self._padding), self._cache.columns)
            self._mask = mask.masked_fill_(columns < padding, float("-inf"))[:, None, None]

    def _read(self, prompts: Sequence[Tensor], runs: Sequence[_Run], predict: bool) -> Tensor:
        lengths = [len(prompt) for prompt in prompts]
        x = torch.cat(list(prompts))
        positions = torch.cat([torch.arange(run.known, run.known + run.length).repeat(run.count) for run in runs])
        rope = self._rope_at(positions.to(x.device))
        windows = {layer.window for layer in self._layers}
        masks = [{window: added_mask(run.length, run.known, window, x) for window in windows} for run in runs]
        last = torch.tensor(list(accumulate(lengths)), device=x.device) - 1
        for number, layer in enumerate(self._layers):
            query, keys, values = self._project(layer, x, rope)
            for run in runs:
                columns = slice(self._width - run.length, self._width)
                own = (self._of_run(keys, run), self._of_run(values, run))
                self._cache.write(number, run.rows, columns, *own)
            if number + 1 == len(self._layers):
                if not predict:
                    return x[last]
                x = _finish(layer, x[last], self._attend_last(number, layer, query[last]))
                break
            attended = [
                self._attend_run(number, layer, run, mask[layer.window], query, keys, values)
                for run, mask in zip(runs, masks, strict=True)
            ]
            x = _finish(layer, x, torch.cat(attended) if len(attended) > 1 else attended[0])
        return self._decoder.norm(x)

    def _project(self, layer: FusedLayer, x: Tensor, rope: _Rope) -> tuple[Tensor, Tensor, Tensor]:
        """(N, d) -> queries (N, heads, d), keys and values (N, key-value heads, d), at their positions."""
        numbers = [self._decoder.num_heads, self._decoder.num_kv_heads]
        heads = layer.qkv(layer.attention_norm(x)).view(len(x), -1, self._decoder.head_size)
        turned, values = heads.split([sum(numbers), numbers[1]], dim=1)
        if layer.query_norm is not None and layer.key_norm is not None:
            query, keys = turned.split(numbers, dim=1)
            turned = torch.cat([layer.query_norm(query), layer.key_norm(keys)], dim=1)
        if layer.rope is not None:
            cosines, sines = rope[layer.rope]
            rolled = torch.roll(turned, self._decoder.head_size // 2, dims=-1)
            turned = (turned * cosines).add_(rolled.mul_(sines))
        query, keys = turned.split(numbers, dim=1)
        return query, keys, values

    def _attend_last(self, number: int, layer: FusedLayer, query: Tensor) -> Tensor:
        """Of the last column's queries (B, heads, d)."""
        first = self._first if layer.window is None else max(self._first, self._width - layer.window)
        keys = self._cache.keys[number][:, :, first : self._width]
        values = self._cache.values[number][:, :, first : self._width]
        mask = None if self._mask is None or first >= self._last else self._mask[..., first : self._width]
        return attend_last(query, keys, values, mask, layer.scale)

    def _attend_run(
        self,
        number: int,
        layer: FusedLayer,
        run: _Run,
        mask: Tensor | None,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        if run.known:
            columns = slice(self._width - run.length - run.known, self._width)
            all_keys, all_values = (side[number][run.rows, :, columns] for side in self._cache.sides)
        else:
            all_keys, all_values = self._of_run(keys, run), self._of_run(values, run)
        return attend_run(self._of_run(query, run), all_keys, all_values, mask, layer.scale)

    @staticmethod
    def _of_run(heads: Tensor, run: _Run) -> Tensor:
        """(T, heads, d) -> (n, heads, L, d)."""
        return heads[run.tokens].unflatten(0, (run.count, run.length)).transpose(1, 2)

    def _rope_at(self, positions: Tensor) -> _Rope:
        """Of (N,) positions, (N, 1, d) each."""
        return {
            kind: (cosines[positions][:, None], sines[positions][:, None])
            for kind, (cosines, sines) in self._rope.items()
        }


def _finish(layer: FusedLayer, x: Tensor, attended: Tensor) -> Tensor:
    """The rest of a layer: (N, d) that it read and (N, heads · d) attended -> (N, d)."""
    out = layer.attention_out(attended)
    if layer.attention_out_norm is not None:
        out = layer.attention_out_norm(out)
    x = out.add_(x)
    gate, up = layer.gate_up(layer.feed_norm(x)).chunk(2, dim=-1)
    down = layer.down(layer.activation(gate).mul_(up))
    if layer.feed_out_norm is not None:
        down = layer.feed_out_norm(down)
    return down.add_(x)


def _runs(known: Sequence[int], lengths: Sequence[int]) -> list[_Run]:
    """Rows as runs, in order."""
    runs, row, token = list[_Run](), 0, 0
    for (before, length), group in groupby(zip(known, lengths, strict=True)):
        count = len(list(group))
        runs.append(_Run(slice(row, row + count), slice(token, token + count * length), count, length, before))
        row, token = row + count, token + count * length
    return runs
