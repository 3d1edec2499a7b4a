"""GraphGPT instruction JSON (https://arxiv.org/abs/2310.13023), with the texts or the numbers of its nodes.

An item is ``{"id", "graph": {"node_idx", "edge_index", "node_list"}, "conversations"}``; link prediction has two
graphs, with ``_1`` and ``_2`` after the names.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.converters.conversion import ConversionError, Converted, SkipItemError, Tally, draft, read_json, tidy
from data.drafts import Draft
from data.media import MediaError
from data.records import Part
from layers.media import Graph

FIELDS = {"id", "graph", "conversations"}
_GRAPH_FIELDS = ("node_idx", "edge_index", "node_list")
_PLACEHOLDER = re.compile(r"(<graph>)")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the format."""
    parser.add_argument("--node-texts", type=Path, help="CSV or TSV of node,text (a header with these names, or none)")
    parser.add_argument("--graph-data", type=Path, help="torch_geometric data saved by torch.save, with what follows")
    parser.add_argument("--dataset", help="key of the data in --graph-data, if it holds several")
    parser.add_argument(
        "--text-attribute", default="raw_texts", help="list of node texts in --graph-data (%(default)s)"
    )
    parser.add_argument(
        "--node-features",
        metavar="ATTRIBUTE",
        help="also keep the nodes' numbers, such as 'x' of --graph-data; texts are then not needed",
    )


def convert(source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
    """One record per item; the target node comes first in its graph, as records want it."""
    nodes = _nodes(options)
    for number, item in enumerate(read_json(source, list, "instructions")):
        try:
            yield _record(item, nodes, options, number, tally)
        except (SkipItemError, MediaError) as error:
            tally.skip(item.get("id", number) if isinstance(item, Mapping) else number, str(error))


@dataclass(frozen=True)
class Nodes:
    """What is known of the nodes of the whole graph.

    Args:
        text_of: The text of a node; KeyError or IndexError if it has none.
        features: (nodes, width) float32, or None.
    """

    text_of: Callable[[int], str]
    features: Tensor | None = None


def _nodes(options: argparse.Namespace) -> Nodes:
    if options.node_texts is None and options.graph_data is None:
        raise ConversionError("graphgpt: expected --node-texts or --graph-data, got neither")
    if options.node_features is not None and options.graph_data is None:
        raise ConversionError("graphgpt: --node-features: expected --graph-data, got none")
    saved = None if options.graph_data is None else read_graph_data(options.graph_data, options.dataset)
    features = None if options.node_features is None else _features(saved, options)
    if options.node_texts is not None:
        return Nodes(read_node_texts(options.node_texts).__getitem__, features)
    if features is not None and getattr(saved, options.text_attribute, None) is None:
        return Nodes(lambda node: "", features)
    return Nodes(_texts(saved, options).__getitem__, features)


def read_node_texts(path: Path) -> dict[int, str]:
    """Node -> text of a CSV or TSV file.

    Raises:
        ConversionError: If it is malformed.
    """
    texts: dict[int, str] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","), 1):
                if number == 1 and row and not row[0].strip().isdigit():
                    continue
                if len(row) < 2 or not row[0].strip().isdigit():
                    raise ConversionError(f"'{path}' line {number}: expected node,text, got {row!r:.80}")
                texts[int(row[0])] = tidy(" ".join(row[1:]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConversionError(f"'{path}': cannot be read: {error}") from None
    return texts


def read_graph_data(path: Path, dataset: str | None) -> Any:
    """Saved torch_geometric data; nothing but tensors and torch_geometric's own containers is loaded.

    Raises:
        ConversionError: If it holds anything else, or no such dataset.
    """
    from torch_geometric.data import Data
    from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import GlobalStorage

    try:
        with torch.serialization.safe_globals([Data, DataEdgeAttr, DataTensorAttr, GlobalStorage]):
            value = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # an unpickler's errors have many types
        raise ConversionError(f"'{path}': expected torch_geometric data, got: {error}") from None
    if isinstance(value, dict):
        if dataset not in value:
            raise ConversionError(f"'{path}': --dataset: expected one of {sorted(value)}, got {dataset!r}")
        value = value[dataset]
    return value


def _texts(saved: Any, options: argparse.Namespace) -> list[str]:
    texts, name = getattr(saved, options.text_attribute, None), options.text_attribute
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ConversionError(
            f"'{options.graph_data}': expected a list of texts in '{name}', got {_keys(saved)}; see --node-texts"
        )
    return [tidy(text) for text in texts]


def _features(saved: Any, options: argparse.Namespace) -> Tensor:
    features, name = getattr(saved, options.node_features, None), options.node_features
    if not isinstance(features, Tensor) or features.dim() != 2 or not features.is_floating_point():
        raise ConversionError(f"'{options.graph_data}': expected numbers per node in '{name}', got {_keys(saved)}")
    if not bool(features.isfinite().all()):
        raise ConversionError(f"'{options.graph_data}': expected finite numbers in '{name}', got NaN or infinity")
    return features.float()


def _keys(saved: Any) -> list[str] | str:
    return sorted(saved.keys()) if hasattr(saved, "keys") else type(saved).__name__


def _record(item: Any, nodes: Nodes, options: argparse.Namespace, number: int, tally: Tally) -> Converted:
    if not isinstance(item, Mapping) or not isinstance(item.get("graph"), Mapping):
        raise SkipItemError("no graph")
    tally.fields(item, FIELDS)
    graph = item["graph"]
    suffixes = ("_1", "_2") if "node_idx_1" in graph else ("",)
    tally.fields(graph, {name + suffix for name in _GRAPH_FIELDS for suffix in suffixes}, "graph")
    made = draft(options, number, "graph_instruction")
    waiting = []
    for suffix in suffixes:
        name = f"graph{suffix}"
        target, edge_index, node_list = (graph[field + suffix] for field in _GRAPH_FIELDS)
        made.add_graph(graph_of(target, edge_index, node_list, nodes), name)
        waiting.append(name)
    for turn in item["conversations"]:
        parts = _parts(str(turn["value"]), waiting, made)
        if turn["from"] == "human":
            made.user(*parts)
        else:
            made.assistant(*parts)
    if waiting:
        raise SkipItemError("more graphs than placeholders")
    made.meta["id"] = item.get("id")
    return made.finish()


def graph_of(target: int, edge_index: list[list[int]], node_list: list[int], nodes: Nodes) -> Graph:
    """The subgraph with its target as node 0; ``edge_index`` counts within ``node_list``.

    Raises:
        SkipItemError: If the target is not among the nodes, a node has no text or no numbers, or an edge leaves the
            list.
    """
    if target not in node_list:
        raise SkipItemError("target node that is not in node_list")
    if len(edge_index) != 2 or any(not 0 <= end < len(node_list) for row in edge_index for end in row):
        raise SkipItemError("edge_index that leaves node_list")
    order = [node_list.index(target), *(place for place, node in enumerate(node_list) if node != target)]
    new = {old: place for place, old in enumerate(order)}
    known = [node_list[old] for old in order]
    try:
        texts = tuple(nodes.text_of(node) for node in known)
    except (KeyError, IndexError):
        raise SkipItemError("node without a text") from None
    if nodes.features is not None and not all(0 <= node < len(nodes.features) for node in known):
        raise SkipItemError("node without numbers")
    if len(new) != len(node_list):
        raise SkipItemError("node_list with a repeated target")
    edges = torch.tensor([[new[end] for end in row] for row in edge_index], dtype=torch.int64).reshape(2, -1)
    return Graph(texts, edges, None if nodes.features is None else nodes.features[known])


def _parts(text: str, waiting: list[str], made: Draft) -> list[str | Part]:
    parts: list[str | Part] = []
    for piece in _PLACEHOLDER.split(text):
        if piece == "<graph>":
            if not waiting:
                raise SkipItemError("more placeholders than graphs")
            parts.append(made.medium(waiting.pop(0)))
        elif piece.strip():
            parts.append(piece.strip())
    return parts
