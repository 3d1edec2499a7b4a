"""The graph encoder: direction of messages, batch = single, permutation of nodes, and bad graphs."""

import pickle

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from encoders.graph import GraphProcessor, GraphTransformerEncoder, MessagePassingEncoder, hash_text
from encoders.graph.message_passing import Kind
from encoders.graph.nodes import NodeEncoder
from encoders.graph.processor import laplacian_eigenvectors
from layers.layout import Layout
from layers.media import Graph


@pytest.fixture(scope="module")
def encoder() -> GraphTransformerEncoder:
    torch.manual_seed(0)
    return GraphTransformerEncoder(hidden_size=16, num_layers=1, num_heads=2, text_width=64, walk_length=3).eval()


def _graph(texts: list[str], edges: list[tuple[int, int]]) -> Graph:
    return Graph(tuple(texts), torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T)


ONE_HOP = [{0, 1}, {0, 1, 2}, {1, 2}]  # what one layer reaches from each node of 2 -> 1 -> 0, whichever way it goes


def _encode(encoder: NodeEncoder, graphs: list[Graph]) -> tuple[torch.Tensor, ...]:
    items, layouts = zip(*[encoder.processor(graph) for graph in graphs], strict=True)
    return Layout(layouts).split(encoder(encoder.collate(items), Layout(layouts)))


def _reach(encoder: NodeEncoder) -> list[set[int]]:
    """For each node of 2 -> 1 -> 0, the nodes whose features change with its text."""
    reach = []
    for changed in range(3):
        texts = ["a", "b", "c"]
        texts[changed] = "other words"
        before, after = (_encode(encoder, [_graph(t, [(1, 0), (2, 1)])])[0] for t in (["a", "b", "c"], texts))
        reach.append(set(((after - before).abs().amax(1) > 1e-6).nonzero()[:, 0].tolist()))
    return reach


def test_messages_arrive_at_the_target_and_run_backwards_with_another_type(encoder: GraphTransformerEncoder) -> None:
    """One layer carries text one hop: along the edge and, as another kind of message, against it."""
    assert _reach(encoder) == ONE_HOP
    edge_index = torch.tensor([[1], [0]])
    layer = encoder.layers[0]
    hidden, types = torch.randn(2, 16), encoder.edge_types.weight
    unmoved = layer(hidden, edge_index[:, :0], types[:0])
    arrived = layer(hidden, edge_index, types[:1])
    assert not torch.allclose(arrived[0], unmoved[0]) and torch.allclose(arrived[1], unmoved[1])
    assert not torch.allclose(arrived[0], layer(hidden, edge_index, types[1:])[0])


def test_graphs_do_not_influence_each_other(encoder: GraphTransformerEncoder) -> None:
    graphs = [
        _graph(["a"], []),
        _graph(["x y", "y", "z"], [(0, 1), (2, 1), (1, 0)]),
        _graph(["q", "r"], [(1, 0)]),
    ]
    for graph, features in zip(graphs, _encode(encoder, graphs), strict=True):
        torch.testing.assert_close(features, _encode(encoder, [graph])[0], atol=1e-6, rtol=1e-6)


def test_order_of_context_nodes_does_not_matter(encoder: GraphTransformerEncoder) -> None:
    texts, edges = ["t", "a", "b", "c"], [(1, 0), (2, 0), (3, 2)]
    order = [0, 3, 1, 2]  # old index at each new place; the target stays first
    place = {old: new for new, old in enumerate(order)}
    moved = _graph([texts[i] for i in order], [(place[a], place[b]) for a, b in edges])
    first, second = _encode(encoder, [_graph(texts, edges), moved])
    torch.testing.assert_close(first[order], second, atol=1e-6, rtol=1e-6)


def test_structure_features() -> None:
    item, layout = GraphProcessor(text_width=8, walk_length=2)(_graph(["a", "b", "c"], [(0, 1), (0, 2), (0, 1)]))
    assert layout.grid == (3,) and item["structure"].shape == (3, 5)
    expected = torch.tensor([[0.0, 1.0, 0.0, 2.0, 1.0], [0.0, 0.5, 1.0, 0.0, 0.0], [0.0, 0.5, 1.0, 0.0, 0.0]])
    expected[:, 2:4] = expected[:, 2:4].log1p()
    torch.testing.assert_close(item["structure"], expected)
    assert item["edge_index"].tolist() == [[0, 0], [1, 2]]


def test_hashed_texts() -> None:
    assert hash_text("", 32).norm() == 0
    vector = hash_text("Parse JSON documents", 512)
    torch.testing.assert_close(vector.norm(), torch.tensor(1.0))
    assert torch.equal(vector, hash_text("documents, parse json!", 512))
    assert vector @ hash_text("parsing of json", 512) > vector @ hash_text("open sockets", 512) + 0.2


@pytest.mark.parametrize(
    "graph, message",
    [
        (Graph((), torch.zeros(2, 0, dtype=torch.int64)), r"1 to 4 nodes, got size \(0,\)"),
        (_graph(["a"] * 5, []), r"1 to 4 nodes, got size \(5,\)"),
        (_graph(["a", "b"], [(0, 1), (1, 2)]), "nodes 0 to 1, got node 2"),
        (_graph(["a", "b"], [(-1, 0)]), "nodes 0 to 1, got node -1"),
        (Graph(("a",), torch.zeros(3, dtype=torch.int64)), r"edge_index \(2, E\)"),
        ("text", "Graph"),
    ],
)
def test_bad_graphs_are_refused(graph: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GraphProcessor(max_nodes=4)(graph)


def test_processor_is_picklable_and_every_parameter_learns(encoder: GraphTransformerEncoder) -> None:
    assert pickle.loads(pickle.dumps(encoder.processor)) == encoder.processor
    encoder.zero_grad()
    torch.cat(_encode(encoder, [_graph(["a", "b"], [(0, 1)])])).square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    with pytest.raises(ValueError, match="3 heads do not divide"):
        GraphTransformerEncoder(hidden_size=16, num_heads=3)


NETWORKS: tuple[Kind, ...] = ("gcn", "sage", "gin", "gatv2", "gps")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny sentence encoder in transformers' own format."""
    folder = tmp_path_factory.mktemp("bert")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] reads json opens a socket".split()
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **size)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_of_the_library(network: Kind) -> None:
    """Batch = single, messages in both directions within the hops, every weight learns."""
    torch.manual_seed(0)
    encoder = MessagePassingEncoder(
        network, hidden_size=16, num_layers=1, num_heads=2, text_width=64, walk_length=3, num_eigenvectors=2
    ).eval()
    graphs = [
        _graph(["a"], []),
        _graph(["x y", "y", "z", "w"], [(0, 1), (2, 1), (1, 0), (3, 2)]),
        _graph(["q", "r"], [(1, 0)]),
    ]
    together = _encode(encoder, graphs)
    for graph, features in zip(graphs, together, strict=True):
        assert features.isfinite().all()
        torch.testing.assert_close(features, _encode(encoder, [graph])[0], atol=1e-5, rtol=1e-5)
    assert _reach(encoder) == ([{0, 1, 2}] * 3 if network == "gps" else ONE_HOP)
    encoder.train()
    torch.cat(_encode(encoder, graphs)).mul(torch.randn(7, 16)).sum().backward()
    assert [name for name, value in encoder.named_parameters() if value.grad is None] == []


def test_eigenvectors_of_the_laplacian() -> None:
    path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])  # 0 - 1 - 2: eigenvalues 0, 1, 2
    found = laplacian_eigenvectors(path, 3, 4)
    expected = torch.tensor([[0.5**0.5, -0.5, 0, 0], [0, 0.5**0.5, 0, 0], [-(0.5**0.5), -0.5, 0, 0]])
    torch.testing.assert_close(found.abs(), expected.abs(), atol=1e-6, rtol=0)
    assert found[0, 0] * found[2, 0] < 0 and found[0, 1] * found[1, 1] < 0
    assert torch.equal(laplacian_eigenvectors(torch.zeros(2, 0, dtype=torch.int64), 1, 2), torch.zeros(1, 2))


def test_signs_of_eigenvectors_change_in_training_alone() -> None:
    torch.manual_seed(0)
    encoder = GraphTransformerEncoder(hidden_size=8, num_layers=1, num_heads=2, text_width=16, num_eigenvectors=2)
    graph = _graph(["a", "b", "c"], [(0, 1), (1, 2)])
    drawn = {tuple(_encode(encoder, [graph])[0].flatten().tolist()) for _ in range(24)}
    assert len(drawn) == 4
    encoder.eval()
    assert torch.equal(_encode(encoder, [graph])[0], _encode(encoder, [graph])[0])


def test_texts_through_a_sentence_encoder(bert: str) -> None:
    torch.manual_seed(0)
    encoder = MessagePassingEncoder("sage", hidden_size=8, num_layers=1, text_width=16, sentence_encoder=bert)
    assert encoder.sentences is not None and not encoder.train().sentences.training
    graphs = [_graph(["reads json", "opens a socket"], [(0, 1)]), _graph(["json"], [])]
    tokenizer, model = AutoTokenizer.from_pretrained(bert), BertModel.from_pretrained(bert).eval()
    items = [pickle.loads(pickle.dumps(encoder.processor))(graph)[0] for graph in graphs]
    batch = encoder.collate(items)
    found = encoder.sentences(batch["token_ids"], batch["token_lengths"])
    for row, text in zip(found, ("reads json", "opens a socket", "json"), strict=True):
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(row, torch.nn.functional.normalize(states.mean(0), dim=0), atol=1e-5, rtol=1e-5)
    encoder.eval()
    for graph, features in zip(graphs, _encode(encoder, graphs), strict=True):
        torch.testing.assert_close(features, _encode(encoder, [graph])[0], atol=1e-5, rtol=1e-5)
    hidden = {**items[0], "shown": torch.tensor([[0.0], [1.0]])}
    layout = encoder.processor.layout((2,))
    shown, unseen = (encoder.nodes(encoder.collate([item]), Layout([layout])) for item in (items[0], hidden))
    assert torch.equal(shown[1], unseen[1]) and not torch.allclose(shown[0], unseen[0])
    wordless, _ = encoder.processor(_graph(["?!", "json"], []))
    assert not wordless["x"][0].any() and encoder.nodes(encoder.collate([wordless]), Layout([layout]))[0].any()
    bare = {**wordless, "shown": torch.tensor([[0.0], [1.0]])}
    with_text, without = (encoder.nodes(encoder.collate([item]), Layout([layout])) for item in (wordless, bare))
    assert not torch.allclose(with_text[0], without[0])  # "?!" is a text too
    encoder.processor.max_text_tokens = 4
    with pytest.raises(ValueError, match="expected node texts of 1 to 4 tokens, got 5 in node 1"):
        encoder.processor(graphs[0])


def test_a_network_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"expected one of \['gatv2', 'gcn', 'gin', 'gps', 'sage'\], got 'gat'"):
        MessagePassingEncoder("gat")  # type: ignore[arg-type]
