"""Ranks of the entity that a triple has, among all that it could have."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from heads.embedding.index import ExactIndex
from heads.entity_ranking.relations import Relations

Triple = tuple[str, str, str]
"""Names of head, relation and tail."""

_SCORES = 1 << 24


def mean_ranks(scores: Tensor, targets: Tensor, left_out: Tensor) -> Tensor:
    """The rank of one candidate per row, from 1 on, equal scores sharing the mean of the best and the worst rank.

    Args:
        scores: (n, m), of which more is better.
        targets: (n,) the candidate whose rank is asked for.
        left_out: (n, m) True at candidates that do not count; the target counts whatever stands there.

    Returns:
        (n,) float64.
    """
    own = scores.gather(1, targets[:, None])
    counted = ~left_out
    counted.scatter_(1, targets[:, None], False)
    above = ((scores > own) & counted).sum(dim=1)
    equal = ((scores == own) & counted).sum(dim=1)
    return 1 + above.double() + equal.double() / 2


@torch.no_grad()
def rank_triples(
    relations: Relations,
    names: Sequence[str],
    index: ExactIndex,
    triples: Sequence[Triple],
    known: Iterable[Triple] = (),
    max_scores: int = _SCORES,
) -> Tensor:
    """Filtered ranks of triples' tails and heads among the entities of an index.

    Other entities with which a triple is known to hold are left out, and equal scores take the mean rank: a model that
    gives all entities one score gets the mean rank and not the first.

    Args:
        relations: The trained relations.
        names: Their names, in order.
        index: Every entity that may answer, each embedded once.
        triples: What to rank.
        known: Triples that hold; the ranked ones are added to them.
        max_scores: Scores that are held in memory at once.

    Returns:
        (n, 2) ranks of the tail and of the head, float64.

    Raises:
        ValueError: For an entity that is not in the index, or an unknown relation.
    """
    numbers = {name: number for number, name in enumerate(names)}
    missing = sorted({relation for _, relation, _ in triples} - set(numbers))
    if missing:
        raise ValueError(f"relation: expected one of {', '.join(names)}, got '{missing[0]}'")
    tails, heads = _answers([*known, *triples])
    device, ranks = index.vectors.device, list[Tensor]()
    batch = max(1, max_scores // max(1, len(index)))
    for start in range(0, len(triples), batch):
        part = triples[start : start + batch]
        vectors = relations.table(torch.tensor([numbers[r] for _, r, _ in part], device=device))
        head_rows, tail_rows = (torch.tensor([index.row(t[place]) for t in part], device=device) for place in (0, 2))
        sides = (
            (relations.tail_queries(index.vectors[head_rows], vectors), tail_rows, [tails[h, r] for h, r, _ in part]),
            (relations.head_queries(index.vectors[tail_rows], vectors), head_rows, [heads[r, t] for _, r, t in part]),
        )
        found = []
        for queries, targets, answers in sides:
            scores = relations.compare(queries, index.vectors)
            found.append(mean_ranks(scores, targets, _marked(answers, index, scores)))
        ranks.append(torch.stack(found, dim=1))
    return torch.cat(ranks) if ranks else torch.zeros(0, 2, dtype=torch.float64)


def _answers(triples: Sequence[Triple]) -> tuple[dict[tuple[str, str], set[str]], dict[tuple[str, str], set[str]]]:
    """Tails by (head, relation), and heads by (relation, tail)."""
    tails: dict[tuple[str, str], set[str]] = {}
    heads: dict[tuple[str, str], set[str]] = {}
    for head, relation, tail in triples:
        tails.setdefault((head, relation), set()).add(tail)
        heads.setdefault((relation, tail), set()).add(head)
    return tails, heads


def _marked(answers: Sequence[Collection[str]], index: ExactIndex, like: Tensor) -> Tensor:
    """(n, m) True at each row's known answers; those that the index lacks are no candidates anyway."""
    marked = torch.zeros_like(like, dtype=torch.bool)
    for row, names in enumerate(answers):
        marked[row, [index.row(name) for name in names if name in index]] = True
    return marked
