"""Whole graphs whose nodes have texts, numbers and classes: tables, OGB's ogbn-arxiv, LINQS' Cora and PubMed."""

from __future__ import annotations

import csv
import gzip
import io
import random
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from data.converters.conversion import ConversionError, tidy
from data.converters.graph_tables import induced, neighbourhood, read_rows
from data.media import encode_graph
from eval.benchmarks.benchmark import BenchmarkError
from eval.benchmarks.reader import MediaFile, below

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


@dataclass(frozen=True)
class TextGraph:
    """A graph.

    Args:
        names: The nodes' own ids.
        texts: A text per node; "" where there is none.
        labels: A class per node; "" where there is none.
        splits: "train", "val" or "test" per node.
        edges: Pairs of node numbers, once each.
        features: (nodes, width) float32, or None.
    """

    names: Sequence[str]
    texts: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str]
    edges: Sequence[tuple[int, int]]
    features: Tensor | None = None

    @cached_property
    def neighbours(self) -> Mapping[int, Sequence[int]]:
        """Node -> nodes beside it, in either direction."""
        found: dict[int, list[int]] = defaultdict(list)
        for a, b in self.edges:
            found[a].append(b)
            found[b].append(a)
        return found

    @cached_property
    def targets_of(self) -> Mapping[int, Collection[int]]:
        """Node -> nodes that its edges go to."""
        found: dict[int, set[int]] = defaultdict(set)
        for a, b in self.edges:
            found[a].add(b)
        return found


@dataclass(frozen=True)
class Neighbourhood(MediaFile):
    """The neighbourhood of a node, cut out when it is asked for.

    Args:
        type: "graph".
        path: None.
        data: None.
        graph: The whole graph.
        node: The one in the middle, which becomes node 0.
        hops: How far to go.
        limit: How many nodes to keep.
        seed: Of which are kept where there are more.
    """

    graph: TextGraph = field(kw_only=True)
    node: int = 0
    hops: int = 2
    limit: int = 32
    seed: int = 0

    @property
    def identity(self) -> str:
        """The node and how it is cut."""
        return f"{self.graph.names[self.node]}:{self.hops}:{self.limit}:{self.seed}"

    def read(self) -> bytes:
        """The graph as a media member."""
        rng = random.Random(f"{self.seed}/{self.graph.names[self.node]}")
        nodes = neighbourhood(self.node, self.graph.neighbours, self.hops, self.limit, rng)
        cut = induced(nodes, self.graph.targets_of, self.graph.texts)
        if self.graph.features is not None:
            cut = replaced(cut, node_features=self.graph.features[nodes])
        return encode_graph(cut)


def read_tables(root: Path, nodes: str, edges: str) -> TextGraph:
    """Node CSV of ``id,text,label,split`` and edge CSV of ``source,target``.

    Raises:
        BenchmarkError: If they are not there or do not fit together.
    """
    try:
        rows = read_rows(below(root, nodes), {"id", "text", "label"})
        pairs = read_rows(below(root, edges), {"source", "target"})
    except ConversionError as error:
        raise BenchmarkError(str(error)) from None
    names = [row["id"] for row in rows]
    splits = [row.get("split") or "" for row in rows]
    return TextGraph(
        names,
        [tidy(row["text"]) for row in rows],
        [row["label"] or "" for row in rows],
        splits if all(splits) else random_splits(names),
        _edges(names, ((row["source"], row["target"]) for row in pairs), below(root, edges)),
    )


def read_ogbn_arxiv(root: Path, texts: str = "titleabs.tsv") -> TextGraph:
    """The folder ``ogbn_arxiv`` of OGB (https://ogb.stanford.edu), with titles and abstracts beside it.

    Raises:
        BenchmarkError: If files are not there or do not fit together.
    """
    path = root / "mapping" / "nodeidx2paperid.csv.gz"
    papers = [row[1] for row in _csv(path)[1:]]
    _check_once(papers, path)
    classes = {row[0]: _category(row[1]) for row in _csv(root / "mapping" / "labelidx2arxivcategeory.csv.gz")[1:]}
    labels = [classes[row[0]] for row in _csv(root / "raw" / "node-label.csv.gz")]
    splits = [""] * len(papers)
    for ours, theirs in (("train", "train"), ("val", "valid"), ("test", "test")):
        for row in _csv(root / "split" / "time" / f"{theirs}.csv.gz"):
            splits[int(row[0])] = ours
    written = _texts(below(root, texts))
    missing = [paper for paper in papers if paper not in written]
    if missing:
        raise BenchmarkError(f"'{root / texts}': expected a text of every paper, got none of {missing[0]}")
    edges = [(int(a), int(b)) for a, b in _csv(root / "raw" / "edge.csv.gz")]
    return TextGraph(papers, [written[paper] for paper in papers], labels, splits, edges)


def read_linqs(
    root: Path, nodes: str, edges: str, labels: Mapping[str, str] | None = None, texts: str = ""
) -> TextGraph:
    """Cora's ``.content`` and ``.cites``, or PubMed's ``NODE.paper.tab`` and ``DIRECTED.cites.tab``, of LINQS.

    Args:
        root: Their folder.
        nodes: Ids, words and classes; the words become ``features``, and PubMed's the texts too.
        edges: Citations.
        labels: The files' name of a class -> its name in words.
        texts: TSV of id and text, if there is one.

    Raises:
        BenchmarkError: If files are not there or do not fit together.
    """
    path, cites = below(root, nodes), below(root, edges)
    is_tab = path.suffix == ".tab"
    names, words, found, features = _linqs_tab(path) if is_tab else _linqs_content(path)
    written = _texts(below(root, texts)) if texts else {}
    known = dict(labels or {})
    lines = [line.split("\t") for line in _read(cites).splitlines() if line.strip()]
    # Cora's lines say cited and citing, PubMed's id, citing, "|" and cited.
    pairs = [(row[1], row[3]) for row in lines[2:]] if is_tab else [(row[1], row[0]) for row in lines]
    return TextGraph(
        names,
        [written.get(name, text) for name, text in zip(names, words, strict=True)],
        [known.get(label, label) for label in found],
        random_splits(names),
        _edges(names, ((a.removeprefix("paper:"), b.removeprefix("paper:")) for a, b in pairs), cites),
        features,
    )


def random_splits(names: Sequence[str], seed: int = 0) -> list[str]:
    """60 / 20 / 20 at random, the same for the same names."""
    order = sorted(names)
    random.Random(seed).shuffle(order)
    ends = (round(SHARES["train"] * len(order)), round((SHARES["train"] + SHARES["val"]) * len(order)))
    place = {name: number for number, name in enumerate(order)}
    return ["train" if place[n] < ends[0] else "val" if place[n] < ends[1] else "test" for n in names]


SOURCES: Mapping[str, Callable[..., TextGraph]] = {
    "tables": read_tables,
    "ogbn-arxiv": read_ogbn_arxiv,
    "linqs": read_linqs,
}


def _check_once(names: Sequence[str], path: Path) -> None:
    if len(set(names)) != len(names):
        raise BenchmarkError(f"'{path}': expected every node once, got {len(names) - len(set(names))} again")


def _edges(names: Sequence[str], pairs: Iterator[tuple[str, str]], path: Path) -> list[tuple[int, int]]:
    index = {name: number for number, name in enumerate(names)}
    _check_once(names, path)
    try:
        return list(dict.fromkeys((index[a], index[b]) for a, b in pairs))
    except KeyError as error:
        raise BenchmarkError(f"'{path}': expected edges between known nodes, got {error}") from None


def _linqs_content(path: Path) -> tuple[list[str], list[str], list[str], Tensor]:
    rows = [line.split() for line in _read(path).splitlines() if line.strip()]
    try:
        features = torch.tensor([[float(value) for value in row[1:-1]] for row in rows])
    except ValueError as error:
        raise BenchmarkError(f"'{path}': expected id, words and class in every line, got {error}") from None
    return [row[0] for row in rows], [""] * len(rows), [row[-1] for row in rows], features


def _linqs_tab(path: Path) -> tuple[list[str], list[str], list[str], Tensor]:
    lines = _read(path).splitlines()
    if len(lines) < 3:
        raise BenchmarkError(f"'{path}': expected two lines of headers and papers, got {len(lines)} lines")
    words = [cell.split(":")[1] for cell in lines[1].split("\t") if cell.startswith("numeric:")]
    place = {word: number for number, word in enumerate(words)}
    rows = [line.split("\t") for line in lines[2:] if line.strip()]
    features = torch.zeros(len(rows), len(words))
    texts, labels = [], []
    for number, row in enumerate(rows):
        cells = dict(cell.split("=", 1) for cell in row[1:] if "=" in cell)
        labels.append(cells.pop("label", ""))
        cells.pop("summary", None)
        try:
            weights = {word: float(value) for word, value in cells.items()}
            features[number, [place[word] for word in weights]] = torch.tensor(list(weights.values()))
        except (ValueError, KeyError) as error:
            raise BenchmarkError(f"'{path}' line {number + 3}: expected words of the header, got {error}") from None
        texts.append(" ".join(word.removeprefix("w-") for word in sorted(weights, key=lambda word: -weights[word])))
    return [row[0] for row in rows], texts, labels, features


def _category(name: str) -> str:
    """``arxiv cs na`` is cs.NA."""
    parts = name.split()
    return f"{parts[-2]}.{parts[-1].upper()}" if len(parts) > 1 else name


def _texts(path: Path) -> dict[str, str]:
    rows = (line.split("\t") for line in _read(path).split("\n") if "\t" in line)
    return {row[0].strip(): tidy(" ".join(row[1:])) for row in rows}


def _csv(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(_read(path))))


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise BenchmarkError(f"'{path}': cannot be read: {error}") from None
