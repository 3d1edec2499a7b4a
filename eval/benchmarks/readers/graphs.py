"""Questions about graphs: the class of a node, whether two are linked, and what completes a knowledge triple."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.converters.conversion import ConversionError
from data.converters.graph_tables import read_triples
from eval.benchmarks.benchmark import BenchmarkError
from eval.benchmarks.reader import Item, Reader, below, read_lines
from eval.benchmarks.readers.text_graphs import SOURCES, Neighbourhood, TextGraph

Triple = tuple[str, str, str]
"""Head, relation, tail."""


class NodeReader(Reader):
    """The class of every node of a split.

    Args:
        root: The benchmark's folder.
        source: One of :data:`eval.benchmarks.readers.text_graphs.SOURCES`.
        needs: Files below ``root`` that must be there, for the data hash.
        arguments: Of the source, such as its file names.
        split: Which nodes are asked.
        hops: Of a node's neighbourhood.
        limit: Nodes of a neighbourhood.
    """

    def __init__(
        self,
        root: str | Path,
        source: str,
        needs: Sequence[str],
        arguments: Mapping[str, Any] | None = None,
        split: str = "test",
        hops: int = 2,
        limit: int = 32,
    ) -> None:
        super().__init__(root)
        if source not in SOURCES:
            raise BenchmarkError(f"source: expected one of {sorted(SOURCES)}, got '{source}'")
        self.source, self.needs, self.arguments = source, tuple(needs), dict(arguments or {})
        self.split, self.hops, self.limit = split, hops, limit

    @property
    def files(self) -> tuple[Path, ...]:
        """Those that are needed."""
        return tuple(below(self.root, name) for name in self.needs)

    def graph(self) -> TextGraph:
        """The whole graph.

        Raises:
            BenchmarkError: If files are missing or do not fit together.
        """
        if self.missing:
            raise BenchmarkError(f"'{self.missing[0]}': cannot be read: no such file")
        return SOURCES[self.source](self.root, **self.arguments)

    def items(self) -> Iterator[Item]:
        """One per node."""
        graph = self.graph()
        classes = sorted({label for label in graph.labels if label})
        for node, (name, label, split) in enumerate(zip(graph.names, graph.labels, graph.splits, strict=True)):
            if split == self.split and label:
                yield Item(
                    key=name,
                    fields={"classes": ", ".join(classes)},
                    media={"graph": self.around(graph, node)},
                    answer=label,
                    cluster=name,
                    meta={"options": classes},
                )

    def around(self, graph: TextGraph, node: int) -> Neighbourhood:
        """The neighbourhood of a node, as a medium."""
        return Neighbourhood("graph", graph=graph, node=node, hops=self.hops, limit=self.limit)


class LinkReader(NodeReader):
    """Whether two nodes are linked: edges that are hidden from all neighbourhoods, and as many pairs that are none.

    Args:
        root: The benchmark's folder.
        source: As in :class:`NodeReader`.
        needs: As in :class:`NodeReader`.
        arguments: As in :class:`NodeReader`.
        split: A pair is asked if its second node is in it.
        hops: Of a neighbourhood.
        limit: Nodes of a neighbourhood.
        pairs: Edges that are asked at most.
        seed: Of the pairs.
    """

    def __init__(
        self,
        root: str | Path,
        source: str,
        needs: Sequence[str],
        arguments: Mapping[str, Any] | None = None,
        split: str = "test",
        hops: int = 2,
        limit: int = 32,
        pairs: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(root, source, needs, arguments, split, hops, limit)
        self.pairs, self.seed = pairs, seed

    def items(self) -> Iterator[Item]:
        """Links and pairs that are none in turn."""
        graph = self.graph()
        rng = random.Random(self.seed)
        taken = {frozenset(edge) for edge in graph.edges}
        asked = [edge for edge in graph.edges if graph.splits[edge[1]] == self.split and edge[0] != edge[1]]
        asked = rng.sample(asked, min(self.pairs, len(asked)))
        hidden = {frozenset(edge) for edge in asked}
        graph = replace(graph, edges=[edge for edge in graph.edges if frozenset(edge) not in hidden])
        for first, second in asked:
            yield self._pair(graph, first, second, True)
            free = (rng.randrange(len(graph.names)) for _ in range(100 * len(graph.names)))
            other = next((node for node in free if node != first and frozenset((first, node)) not in taken), None)
            if other is None:
                raise BenchmarkError(f"'{self.root}': expected a node without an edge to '{graph.names[first]}'")
            taken.add(frozenset((first, other)))
            yield self._pair(graph, first, other, False)

    def _pair(self, graph: TextGraph, first: int, second: int, linked: bool) -> Item:
        return Item(
            key=f"{graph.names[first]} {graph.names[second]}",
            fields={},
            media={"graph0": self.around(graph, first), "graph1": self.around(graph, second)},
            answer="yes" if linked else "no",
            cluster=graph.names[first],
            meta={"match": linked},
        )


class TriplesReader(Reader):
    """Completion of knowledge triples, as of WN18RR and FB15k-237: ``train.txt``, ``valid.txt`` and ``test.txt``.

    ``meta.known`` holds the other entities that are right as well in any of the three files: the filtered setting.

    Args:
        root: The benchmark's folder.
        texts: TSV of entity and text, if there is one; entities stand for themselves without.
        sides: "tail", "head" or both.
        split: Whose triples are asked, "test" or "valid".
        hops: Of the training neighbourhood that is shown; 0 shows none.
        limit: Its nodes.
    """

    def __init__(
        self,
        root: str | Path,
        texts: str | None = None,
        sides: Sequence[str] = ("tail", "head"),
        split: str = "test",
        hops: int = 1,
        limit: int = 32,
    ) -> None:
        super().__init__(root)
        self.texts, self.sides, self.hops, self.limit = texts, tuple(sides), hops, limit
        if split not in ("test", "valid"):
            raise BenchmarkError(f"split: expected 'test' or 'valid', got '{split}'")
        self.split = split

    @property
    def files(self) -> tuple[Path, ...]:
        """The triples that are asked, the other ones that are not for training, those that are, and texts."""
        other = "valid" if self.split == "test" else "test"
        names = [f"{self.split}.txt", f"{other}.txt", "train.txt", *([self.texts] if self.texts else [])]
        return tuple(below(self.root, name) for name in names)

    def items(self) -> Iterator[Item]:
        """One per test triple and side."""
        parts, names = self.triples(), self.names()
        num_entities = len(entities_of(parts))
        graph = _relation_graph(parts[2], names)
        place = {name: number for number, name in enumerate(graph.names)}
        for asked in completions(parts, self.sides):
            shown = {}
            if self.hops and asked.given in place:
                shown["graph"] = Neighbourhood(
                    "graph", graph=graph, node=place[asked.given], hops=2 * self.hops, limit=self.limit
                )
            words = (names.get(asked.given, asked.given), asked.relation, "?")
            yield Item(
                key=asked.key,
                fields={"triple": " – ".join(words if asked.side == "tail" else words[::-1])},
                media=shown,
                answer=names.get(asked.right, asked.right),
                cluster=str(asked.number),
                meta={
                    "side": asked.side,
                    "relation": asked.relation,
                    "known": sorted(names.get(other, other) for other in asked.known),
                    "num_candidates": num_entities,
                },
            )

    def triples(self) -> list[list[Triple]]:
        """Of the first three files.

        Raises:
            BenchmarkError: If one is missing or malformed.
        """
        try:
            return [read_triples(path) for path in self.files[:3]]
        except ConversionError as error:
            raise BenchmarkError(str(error)) from None

    def names(self) -> dict[str, str]:
        """Entity -> what it is called, different for every entity; empty where there are no texts."""
        if not self.texts:
            return {}
        names: dict[str, str] = {}
        taken: set[str] = set()
        for line in read_lines(self.files[3]):
            entity, _, text = line.partition("\t")
            if entity:
                text = text.strip() or entity
                # Two entities of one name could not be told apart in a reply.
                names[entity] = text if text not in taken else f"{text} ({entity})"
                taken.add(names[entity])
        return names


@dataclass(frozen=True)
class Completion:
    """A triple with one end left open.

    Args:
        number: Of the triple, from 0.
        side: The end that is asked for, "tail" or "head".
        given: The entity at the other end.
        relation: Between them.
        right: The entity that is asked for.
        known: Others that are right as well.
    """

    number: int
    side: str
    given: str
    relation: str
    right: str
    known: Collection[str]

    @property
    def key(self) -> str:
        """Unique among all."""
        return f"{self.number}/{self.side}"


def completions(parts: Sequence[Sequence[Triple]], sides: Sequence[str]) -> Iterator[Completion]:
    """Every triple of the first part, asked for each side; what any part holds is known."""
    tails: dict[tuple[str, str], set[str]] = defaultdict(set)
    heads: dict[tuple[str, str], set[str]] = defaultdict(set)
    for part in parts:
        for head, relation, tail in part:
            tails[head, relation].add(tail)
            heads[relation, tail].add(head)
    for number, (head, relation, tail) in enumerate(parts[0]):
        for side in sides:
            given, right = (head, tail) if side == "tail" else (tail, head)
            known = (tails[head, relation] if side == "tail" else heads[relation, tail]) - {right}
            yield Completion(number, side, given, relation, right, known)


def entities_of(parts: Sequence[Sequence[Triple]]) -> list[str]:
    """All entities, in the order in which they come."""
    return list(dict.fromkeys(entity for part in parts for head, _, tail in part for entity in (head, tail)))


def _relation_graph(triples: Sequence[tuple[str, str, str]], names: Mapping[str, str]) -> TextGraph:
    """Entities and, between head and tail of each triple, a node with its relation."""
    index: dict[str, int] = {}
    ids: list[str] = []
    texts: list[str] = []
    edges = []

    def add(name: str, text: str) -> int:
        ids.append(name)
        texts.append(text)
        return len(ids) - 1

    for number, (head, relation, tail) in enumerate(triples):
        for entity in (head, tail):
            if entity not in index:
                index[entity] = add(entity, names.get(entity, entity))
        middle = add(f"\0{number}", relation)
        edges += [(index[head], middle), (middle, index[tail])]
    return TextGraph(ids, texts, [""] * len(ids), ["train"] * len(ids), edges)
