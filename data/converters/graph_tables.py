"""A whole graph as node and edge CSV, or knowledge triples as TSV, cut into one neighbourhood per record."""

from __future__ import annotations

import argparse
import csv
import random
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from data.converters.conversion import ConversionError, Converted, SkipItemError, Tally, draft, record_split, tidy
from data.media import MediaError
from layers.media import Graph

NODE_FIELDS = {"id", "text", "label", "split"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the format."""
    parser.add_argument("--edges", type=Path, help="CSV of source,target; SRC is then the CSV of id,text,label,split")
    parser.add_argument("--hops", type=int, default=2, help="neighbourhood of a node (%(default)s)")
    parser.add_argument("--max-nodes", type=int, default=32, help="nodes of a neighbourhood (%(default)s)")
    parser.add_argument("--class-task", help="answer with this task's call; by default with the label in words")
    parser.add_argument("--seed", type=int, default=0, help="of the neighbourhoods (%(default)s)")


def convert(source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
    """With ``--edges``: a record per labelled node. Without: a record per triple, whose tail is the answer."""
    if options.edges is not None:
        yield from _classified_nodes(source, options, tally)
    else:
        yield from _triples(source, options, tally)


def neighbourhood(
    start: int,
    neighbours: Mapping[int, Sequence[int]],
    hops: int,
    limit: int,
    rng: random.Random,
    without: Collection[tuple[int, int]] = (),
) -> list[int]:
    """Nodes within some hops of a node, itself first, at most ``limit``; nearer ones come first, in random order.

    Args:
        start: The node in the middle.
        neighbours: Node -> nodes beside it, in either direction.
        hops: How far to go.
        limit: How many to keep.
        rng: Draws which of the furthest are kept.
        without: Pairs that do not count as neighbours.
    """
    hidden = {pair for edge in without for pair in (tuple(edge), tuple(edge)[::-1])}
    found, frontier = [start], [start]
    for _ in range(hops):
        seen = set(found)
        beyond = sorted({n for node in frontier for n in neighbours[node] if n not in seen and (node, n) not in hidden})
        rng.shuffle(beyond)
        frontier = beyond[: limit - len(found)]
        found += frontier
    return found


def induced(nodes: Sequence[int], edges_from: Mapping[int, Collection[int]], texts: Sequence[str]) -> Graph:
    """The graph of some nodes and all edges among them."""
    place = {node: index for index, node in enumerate(nodes)}
    pairs = [(place[a], place[b]) for a in nodes for b in sorted(edges_from.get(a, ())) if b in place]
    edges = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T.contiguous()
    return Graph(tuple(texts[node] for node in nodes), edges)


def _classified_nodes(source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
    rows = read_rows(source, {"id", "text"})
    for row in rows:
        tally.fields(row, NODE_FIELDS, "nodes")
    index = {row["id"]: number for number, row in enumerate(rows)}
    if len(index) != len(rows):
        raise ConversionError(f"'{source}': expected every id once, got {len(rows) - len(index)} repeated")
    edges_from: dict[int, set[int]] = defaultdict(set)
    neighbours: dict[int, list[int]] = defaultdict(list)
    for edge in read_rows(options.edges, {"source", "target"}):
        try:
            a, b = index[edge["source"]], index[edge["target"]]
        except KeyError as error:
            raise ConversionError(f"'{options.edges}': expected ids of '{source}', got {error}") from None
        edges_from[a].add(b)
        neighbours[a].append(b)
        neighbours[b].append(a)
    texts = [tidy(row["text"]) for row in rows]
    for number, row in enumerate(rows):
        try:
            if not row.get("label"):
                raise SkipItemError("node without a label")
            split = record_split(row["split"]) if row.get("split") else None
            made = draft(options, number, "node_classification", split)
            rng = random.Random(f"{options.seed}/{row['id']}")
            nodes = neighbourhood(number, neighbours, options.hops, options.max_nodes, rng)
            made.add_graph(induced(nodes, edges_from, texts))
            made.user(made.medium("graph"), "Which class does the first node belong to?")
            if options.class_task:
                target = made.add_target("label", row["label"])
                made.assistant(made.call(options.class_task, target=target))
            else:
                made.assistant(row["label"])
            made.meta |= {"id": row["id"], "answer": row["label"]}
            yield made.finish()
        except (SkipItemError, MediaError) as error:
            tally.skip(row["id"], str(error))


def _triples(source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
    """Relations become nodes between head and tail, since a record's edges carry no words."""
    triples = read_triples(source)
    texts: list[str] = []
    entities: dict[str, int] = {}
    edges_from: dict[int, set[int]] = defaultdict(set)
    neighbours: dict[int, list[int]] = defaultdict(list)
    ends = []
    for head, relation, tail in triples:
        for name in (head, tail):
            if name not in entities:
                entities[name] = len(texts)
                texts.append(name)
        middle = len(texts)
        texts.append(relation)
        for a, b in ((entities[head], middle), (middle, entities[tail])):
            edges_from[a].add(b)
            neighbours[a].append(b)
            neighbours[b].append(a)
        ends.append((entities[head], middle))
    for number, ((head, relation, tail), hidden) in enumerate(zip(triples, ends, strict=True)):
        try:
            made = draft(options, number, "triple_completion")
            rng = random.Random(f"{options.seed}/{number}")
            nodes = neighbourhood(hidden[0], neighbours, 2 * options.hops, options.max_nodes, rng, [hidden])
            kept = {node: edges_from[node] - {hidden[1]} for node in nodes if node != hidden[1]}
            made.add_graph(induced(list(kept), kept, texts))
            made.user(made.medium("graph"), f"{head} – {relation} – ?")
            made.assistant(tail)
            made.meta |= {"triple": [head, relation, tail], "answer": tail}
            yield made.finish()
        except (SkipItemError, MediaError) as error:
            tally.skip(f"line {number + 1}", str(error))


def read_rows(path: Path, wanted: set[str]) -> list[dict[str, str]]:
    """The rows of a CSV or TSV file with a header.

    Raises:
        ConversionError: If it cannot be read, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConversionError(f"'{path}': cannot be read: {error}") from None
    missing = sorted(wanted - set(reader.fieldnames or ()))
    if missing:
        raise ConversionError(f"'{path}': expected the columns {missing}, got {list(reader.fieldnames or ())}")
    return rows


def read_triples(path: Path) -> list[tuple[str, str, str]]:
    """(head, relation, tail) of every line.

    Raises:
        ConversionError: If the file cannot be read, or a line holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"'{path}': cannot be read: {error}") from None
    triples = []
    for number, line in enumerate(lines, 1):
        cells = [tidy(cell) for cell in line.split("\t")]
        if line.strip() and (len(cells) != 3 or not all(cells)):
            raise ConversionError(f"'{path}' line {number}: expected head, relation and tail, got {line!r:.80}")
        if line.strip():
            triples.append((cells[0], cells[1], cells[2]))
    return triples
