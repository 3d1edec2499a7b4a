"""Questions about graphs: the class of a node, whether two are linked, and what completes a knowledge triple."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.converters.conversion import ConversionError
from data.converters.graph_tables import read_triples
from eval.benchmarks.benchmark import BenchmarkError
from eval.benchmarks.reader import Item, Reader, below
from eval.benchmarks.readers.text_graphs import SOURCES, Neighbourhood, TextGraph


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
        hops: Of the training neighbourhood that is shown; 0 shows none.
        limit: Its nodes.
    """

    def __init__(
        self,
        root: str | Path,
        texts: str | None = None,
        sides: Sequence[str] = ("tail", "head"),
        hops: int = 1,
        limit: int = 32,
    ) -> None:
        super().__init__(root)
        self.texts, self.sides, self.hops, self.limit = texts, tuple(sides), hops, limit

    @property
    def files(self) -> tuple[Path, ...]:
        """Test, validation and training triples, and texts."""
        names = ["test.txt", "valid.txt", "train.txt", *([self.texts] if self.texts else [])]
        return tuple(below(self.root, name) for name in names)

    def items(self) -> Iterator[Item]:
        """One per test triple and side."""
        try:
            parts = [read_triples(path) for path in self.files[:3]]
        except ConversionError as error:
            raise BenchmarkError(str(error)) from None
        names = self._names()
        everything = [triple for part in parts for triple in part]
        entities = {entity for head, _, tail in everything for entity in (head, tail)}
        tails: dict[tuple[str, str], set[str]] = defaultdict(set)
        heads: dict[tuple[str, str], set[str]] = defaultdict(set)
        for head, relation, tail in everything:
            tails[head, relation].add(tail)
            heads[relation, tail].add(head)
        graph = _relation_graph(parts[2], names)
        place = {name: number for number, name in enumerate(graph.names)}
        for number, (head, relation, tail) in enumerate(parts[0]):
            for side in self.sides:
                given, asked = (head, tail) if side == "tail" else (tail, head)
                others = (tails[head, relation] if side == "tail" else heads[relation, tail]) - {asked}
                shown = {}
                if self.hops and given in place:
                    shown["graph"] = Neighbourhood(
                        "graph", graph=graph, node=place[given], hops=2 * self.hops, limit=self.limit
                    )
                words = (names.get(given, given), relation, "?")
                yield Item(
                    key=f"{number}/{side}",
                    fields={"triple": " – ".join(words if side == "tail" else words[::-1])},
                    media=shown,
                    answer=names.get(asked, asked),
                    cluster=str(number),
                    meta={
                        "side": side,
                        "relation": relation,
                        "known": sorted(names.get(other, other) for other in others),
                        "num_candidates": len(entities),
                    },
                )

    def _names(self) -> dict[str, str]:
        if not self.texts:
            return {}
        try:
            lines = self.files[3].read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BenchmarkError(f"'{self.files[3]}': cannot be read: {error}") from None
        names: dict[str, str] = {}
        taken: set[str] = set()
        for line in lines:
            entity, _, text = line.partition("\t")
            if entity:
                text = text.strip() or entity
                # Two entities of one name could not be told apart in a reply.
                names[entity] = text if text not in taken else f"{text} ({entity})"
                taken.add(names[entity])
        return names


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
