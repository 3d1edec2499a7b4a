"""Records over graphs: training dialogues, and node_family, link and match."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import permutations

import numpy as np
import torch

from data.quickstart.modules import FAMILIES, ModuleGraph
from data.quickstart.phrasing import ask
from data.quickstart.record_parts import QuickstartDraft, record_rng
from data.records import Part, Record, Target
from layers.media import Graph

MAX_NODES = 16
MAX_DIRECT = 9
PROMPT_WORDS = 12
MATCH_WORDS = 8
_ORDERS = tuple(permutations((1, 2, 3)))
_TRAIN_TASKS = {"node_family": 0.45, "link": 0.37, "match": 0.18}

Made = tuple[Record, dict[str, bytes]]


def subgraph(
    modules: ModuleGraph, target: int, rng: np.random.Generator, without: Collection[tuple[int, int]] = ()
) -> Graph:
    """A sampled 2-hop subgraph, the target first; popular modules are drawn less often.

    Args:
        modules: The import graph.
        target: The module in the middle.
        rng: Draws the neighbours.
        without: Edges that must not be seen, nor be used to find neighbours.

    Returns:
        At most 16 nodes, with all edges among them that are not left out.
    """
    hidden = {pair for edge in without for pair in (tuple(edge), tuple(edge)[::-1])}

    def around(node: int) -> list[int]:
        return [other for other in modules.neighbours[node] if (node, other) not in hidden]

    nodes = [target]
    direct = _pick(modules, around(target), MAX_DIRECT, rng)
    nodes += direct
    further = sorted({other for node in direct for other in around(node)} - set(nodes))
    nodes += _pick(modules, further, MAX_NODES - len(nodes), rng)
    return induced(modules, nodes, hidden)


def induced(modules: ModuleGraph, nodes: Sequence[int], hidden: Collection[tuple[int, ...]] = ()) -> Graph:
    """The graph of these modules and the edges among them that are not hidden."""
    edges = [
        (i, j)
        for i, one in enumerate(nodes)
        for j, other in enumerate(nodes)
        if (one, other) in modules.edge_set and (one, other) not in hidden
    ]
    index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T.contiguous()
    return Graph(tuple(modules.texts[node] for node in nodes), index)


def _pick(modules: ModuleGraph, options: Sequence[int], number: int, rng: np.random.Generator) -> list[int]:
    if len(options) <= number:
        return list(options)
    weights = 1.0 / np.sqrt([len(modules.neighbours[node]) for node in options])
    return [int(node) for node in rng.choice(options, number, replace=False, p=weights / weights.sum())]


def node_turn(draft: QuickstartDraft, modules: ModuleGraph, seed: int, rng: np.random.Generator, family: str) -> None:
    """Ask for the family of one of its modules; the call "node_class" answers."""
    members = [i for i in modules.split(seed)[draft.split] if modules.families[i] == family]
    target = members[int(rng.integers(len(members)))]
    draft.add_graph(subgraph(modules, target, rng))
    text = " ".join(modules.texts[target].split()[:PROMPT_WORDS])
    question = f"{ask('node_class', draft.split, rng)} its text: {text}"
    draft.targets["t0"] = Target("label", value=family)
    draft.ask(question, [Part("call", task="node_class", target="t0")], ["graph"])
    draft.meta |= {"question_type": "node_class", "answer": family, "module": modules.names[target]}


def link_turn(
    draft: QuickstartDraft, modules: ModuleGraph, seed: int, rng: np.random.Generator, positive: bool
) -> None:
    """Ask whether one module imports another; the call "link" answers. The asked edge is in neither graph."""
    allowed = modules.split(seed)[draft.split]
    first, second = _edge(modules, allowed, rng) if positive else _non_edge(modules, allowed, rng)
    for name, node in (("first", first), ("second", second)):
        draft.add_graph(subgraph(modules, node, rng, [(first, second)]), name)
    draft.targets["t0"] = Target("score", value=float(positive))
    call = Part("call", task="link", target="t0")
    draft.ask(ask("link", draft.split, rng), [call], ["first", "second"])
    names = [modules.names[first], modules.names[second]]
    draft.meta |= {"question_type": "link", "answer": "yes" if positive else "no", "module": names[0], "modules": names}


def _edge(modules: ModuleGraph, allowed: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
    inside = set(allowed)
    edges = [edge for edge in modules.edges if edge[0] in inside and edge[1] in inside]
    return edges[int(rng.integers(len(edges)))]


def _non_edge(modules: ModuleGraph, allowed: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
    """An importer as in the edges, with a module drawn by the square root of its popularity."""
    weights = np.sqrt(modules.in_degrees[list(allowed)] + 0.25)
    while True:
        first = _edge(modules, allowed, rng)[0]
        second = int(rng.choice(allowed, p=weights / weights.sum()))
        if first != second and not {(first, second), (second, first)} & modules.edge_set:
            return first, second


def match_turn(draft: QuickstartDraft, modules: ModuleGraph, seed: int, rng: np.random.Generator, order: int) -> None:
    """Three modules and their texts in another order: "2 1 3" says which text belongs to each node."""
    told_apart = [i for i, family in enumerate(modules.families) if family != "encodings" and modules.texts[i] != "_"]
    allowed = sorted(set(told_apart) & set(modules.split(seed)[draft.split]))
    target = allowed[int(rng.integers(len(allowed)))]
    near = {other for node in (target, *modules.neighbours[target]) for other in modules.neighbours[node]}
    nodes = [target]
    for options in (sorted(near & set(allowed)), allowed):
        for node in rng.permutation(options).tolist():
            heads = {_head(modules, other) for other in nodes}
            if len(nodes) < 3 and _head(modules, node) not in heads:
                nodes.append(node)
    draft.add_graph(induced(modules, nodes))
    places = _ORDERS[order % len(_ORDERS)]  # the text of node i stands at place places[i]
    listed = sorted(zip(places, nodes, strict=True))
    texts = " ".join(f"{place}: {_head(modules, node)}" for place, node in listed)
    answer = " ".join(map(str, places))
    draft.ask(f"{ask('match', draft.split, rng)} {texts}", [Part("text", text=answer)], ["graph"])
    names = [modules.names[node] for node in nodes]
    draft.meta |= {"question_type": "match", "answer": answer, "module": names[0], "modules": names}


def _head(modules: ModuleGraph, node: int) -> str:
    return " ".join(modules.texts[node].split()[:MATCH_WORDS])


def graphs(modules: ModuleGraph, split: str, index: int, seed: int) -> Made:
    """A training record of one of the three tasks."""
    rng = record_rng(seed, split, "graphs", index)
    return _make(
        modules,
        "graphs",
        str(rng.choice(list(_TRAIN_TASKS), p=list(_TRAIN_TASKS.values()))),
        split,
        index,
        seed,
        int(rng.integers(1 << 20)),
        rng,
    )


def node_family(modules: ModuleGraph, split: str, index: int, seed: int) -> Made:
    """Which family a module belongs to, families in turn."""
    rng = record_rng(seed, split, "node_family", index)
    return _make(modules, "node_family", "node_family", split, index, seed, index, rng)


def link(modules: ModuleGraph, split: str, index: int, seed: int) -> Made:
    """Whether one module imports another, yes and no in turn."""
    rng = record_rng(seed, split, "link", index)
    return _make(modules, "link", "link", split, index, seed, index, rng)


def match(modules: ModuleGraph, split: str, index: int, seed: int) -> Made:
    """Which text belongs to which node, orders in turn."""
    rng = record_rng(seed, split, "match", index)
    return _make(modules, "match", "match", split, index, seed, index, rng)


def _make(
    modules: ModuleGraph,
    prefix: str,
    task: str,
    split: str,
    index: int,
    seed: int,
    number: int,
    rng: np.random.Generator,
) -> Made:
    draft = QuickstartDraft(prefix, split, index)
    if task == "node_family":
        node_turn(draft, modules, seed, rng, list(FAMILIES)[number % len(FAMILIES)])
    elif task == "link":
        link_turn(draft, modules, seed, rng, number % 2 == 0)
    else:
        match_turn(draft, modules, seed, rng, number)
    return draft.finish()
