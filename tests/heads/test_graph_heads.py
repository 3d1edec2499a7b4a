"""Node classes and links."""

from __future__ import annotations

import pytest
import torch

from heads.graph import LabelTargetProcessor, LinkHead, NodeClassHead, ScoreTargetProcessor
from layers.calls import Call, HeadContext, MediaFeatures
from layers.layout import ItemLayout


def graph(x: torch.Tensor, edges: list[tuple[int, int]], features: torch.Tensor | None = None) -> MediaFeatures:
    index = torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T
    values = torch.randn(len(x), 6) if features is None else features
    return MediaFeatures("graph", values, ItemLayout((len(x),), (len(x),)), {"x": x, "edge_index": index})


def test_unknown_labels_and_scores_are_refused() -> None:
    assert LabelTargetProcessor(["a", "b"])("b", [])["label"] == 1
    with pytest.raises(ValueError, match="unknown label 'c'; the classes are a, b"):
        LabelTargetProcessor(["a", "b"])("c", [])
    with pytest.raises(ValueError, match="between 0 and 1, got 2"):
        ScoreTargetProcessor()(2, [])
    with pytest.raises(ValueError, match="two different names"):
        NodeClassHead(4, 6, ["a", "a"])


def test_a_link_needs_two_graphs() -> None:
    one = HeadContext(Call("link", ""), [graph(torch.eye(3), [])])
    with pytest.raises(ValueError, match=r"'link' needs 2 graph\(s\), the conversation has 1"):
        LinkHead(4, 6)(torch.randn(1, 4), [1], [one])


def test_the_class_is_read_from_the_latest_graph() -> None:
    torch.manual_seed(0)
    head = NodeClassHead(4, 6, ["a", "b"]).eval()
    old, latest = graph(torch.eye(3), []), graph(torch.eye(4), [])
    state = torch.randn(1, 4)
    both = head(state, [1], [HeadContext(Call("node_class", ""), [old, latest])])
    torch.testing.assert_close(both, head(state, [1], [HeadContext(Call("node_class", ""), [latest])]))


def test_shared_neighbours_are_counted_in_each_direction() -> None:
    """Nodes are one-hot, so that the soft match is the identity: its counts are those of plain set arithmetic."""
    head = LinkHead(4, 6, node_size=8)
    with torch.no_grad():
        head.match_scale.fill_(100)
    x = torch.eye(8)
    a = graph(x[[0, 2, 3, 4]], [(0, 1), (0, 2), (3, 0)])  # 0 -> 2, 0 -> 3, 4 -> 0
    b = graph(x[[1, 2, 4, 0]], [(0, 1), (0, 2), (3, 0)])  # 1 -> 2, 1 -> 4, 0 -> 1
    counts = head._overlaps(a, b)[28:40].expm1().round(decimals=3).tolist()
    names = ["all-all", "self-all", "all-self", "self-out", "self-in", "out-self", "in-self"]
    names += ["out-out", "out-in", "in-out", "in-in", "self-self"]
    found = {name: count for name, count in zip(names, counts, strict=True) if count}
    assert found == {"all-all": 3, "self-all": 1, "self-in": 1, "out-out": 1, "in-out": 1}


def test_neighbourhoods_are_compared_without_a_node_in_common() -> None:
    head = LinkHead(4, 6, node_size=4)
    a = graph(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]), [(0, 1), (2, 0)])  # 0 -> 1, 2 -> 0
    b = graph(torch.tensor([[0.0, 0, 0, 1], [0, 3, 3, 0]]), [(1, 0)])  # 1 -> 0
    alike = head._overlaps(a, b)[40:].reshape(4, 4)  # rows: all, self, out, in of a; columns: those of b
    expected = torch.tensor([[6 / 57**0.5, 0, 0, 2 / 6**0.5], [0] * 4, [3 / 19**0.5, 0, 0, 0.5**0.5], [0] * 4])
    expected[3] = expected[2]
    torch.testing.assert_close(alike, expected)


def test_node_order_beyond_the_target_does_not_matter() -> None:
    torch.manual_seed(0)
    head = LinkHead(4, 6, node_size=4).eval()
    x, features = torch.rand(4, 4), torch.randn(4, 6)
    order = torch.tensor([0, 3, 1, 2])
    place = {int(node): index for index, node in enumerate(order)}
    edges = [(0, 1), (2, 0), (1, 3)]
    plain = graph(x, edges, features)
    moved = graph(x[order], [(place[i], place[j]) for i, j in edges], features[order])
    other, state = graph(torch.rand(3, 4), [(1, 0)]), torch.randn(1, 4)
    scores = [head(state, [1], [HeadContext(Call("link", ""), [g, other])]) for g in (plain, moved)]
    torch.testing.assert_close(scores[0], scores[1])
