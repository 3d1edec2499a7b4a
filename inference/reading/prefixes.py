"""What of a batch's prompts was read before: in an earlier turn, or for a neighbour that begins alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inference.encoding import ReadPrompt
from inference.past import Past, PastStore, shared_prefixes
from inference.reading.reader import Reader
from models.conditions import Conditions


def read_prefixes(
    reader: Reader, prompts: Sequence[ReadPrompt], conditions: Conditions, store: PastStore | None, shortest: int
) -> list[Past | None]:
    """Find what is known of prompts, and read once what several of them begin with.

    Args:
        reader: Reads beginnings.
        prompts: Of a batch.
        conditions: Of their positions.
        store: What was read in earlier batches; new beginnings are kept in it.
        shortest: Positions from which on a common beginning is worth a forward of its own; 0 for never.
    """
    pasts: list[Past | None] = [None if store is None else store.find(prompt.symbols) for prompt in prompts]
    if shortest == 0:
        return pasts
    known = [0 if past is None else past.length for past in pasts]
    found = shared_prefixes([item.symbols for item in prompts], [item.keys for item in prompts], shortest)
    shared = [(members, length) for members, length in found if any(known[row] < length for row in members)]
    if not shared:
        return pasts
    firsts = [members[0] for members, _ in shared]
    own = conditions.rows(torch.tensor(firsts, device=prompts[0].embeds.device))
    embeds = [prompts[row].embeds[:length] for row, (_, length) in zip(firsts, shared, strict=True)]
    read = reader.read_pasts(embeds, own.within([slice(length) for _, length in shared]))
    for past, (members, length) in zip(read, shared, strict=True):
        if store is not None:
            store.add(prompts[members[0]].symbols[:length], past)
        for row in members:
            pasts[row] = past if known[row] < length else pasts[row]
    return pasts
