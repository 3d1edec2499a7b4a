"""GraphGPT's two folders, made with random weights: features, projected nodes and logits are those of its own sums."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from data.records import Message, Part
from data.render import render_prompt
from encoders.graph import GraphGPTEncoder
from layers.layout import Layout
from layers.media import Graph
from models.__main__ import main as models_main
from models.foreign.graphgpt import END, PATCH, START, SYSTEM
from models.generalist import Generalist
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskTable
from tests.tiny import WORDS

INPUT, WIDTH, OUTPUT, HEADS, LAYERS = 6, 8, 10, 2, 3
GROUNDING = {"gnn_type": "gt", "gnn_input": INPUT, "gnn_output": OUTPUT, "att_d_model": WIDTH, "gt_layers": LAYERS}
GROUNDING |= {"head": HEADS, "att_norm": True, "if_pos": False, "edge_coef": 10, "context_length": 128}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 4, "max_position_embeddings": 512, "pad_token_id": 0, "eos_token_id": 1}


def grounding_state() -> dict[str, Tensor]:
    """What the grounding stage pickles: the graph transformer, and a text tower that nobody needs."""
    draw = torch.Generator().manual_seed(0)

    def rows(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw) * 0.8

    state = {"gnn.W_pos": rows(1, WIDTH), "gnn.W_P.weight": rows(WIDTH, INPUT), "gnn.W_P.bias": rows(WIDTH)}
    state |= {"gnn.inverW_P.weight": rows(OUTPUT, WIDTH), "gnn.inverW_P.bias": rows(OUTPUT)}
    for layer in range(LAYERS):
        place = f"gnn.gtLayers.{layer}."
        state |= {f"{place}{name}Trans": rows(WIDTH, WIDTH) for name in "qkv"}
        state |= {f"{place}norm.weight": rows(WIDTH), f"{place}norm.bias": rows(WIDTH)}
    return state | {"token_embedding.weight": rows(5, 4), "logit_scale": torch.tensor(1.0)}


def their_features(state: dict[str, Tensor], graph: Graph, *, position: bool = False) -> Tensor:
    """One sum per edge and head, as the released layer has them: a message arrives at ``edge_index[0]``."""
    assert graph.node_features is not None
    s = {name.removeprefix("gnn."): value for name, value in state.items()}
    h = F.linear(graph.node_features, s["W_P.weight"], s["W_P.bias"]) + (s["W_pos"] if position else 0)
    for layer in range(LAYERS):
        q, k, v = ((h @ s[f"gtLayers.{layer}.{name}Trans"]).unflatten(1, (HEADS, -1)) for name in "qkv")
        total, message = torch.zeros(len(h), HEADS), torch.zeros(len(h), HEADS, WIDTH // HEADS)
        weights = [(q[row] * k[column]).sum(1).clamp(-10, 10).exp() for row, column in graph.edge_index.T]
        for (row, _), weight in zip(graph.edge_index.T, weights, strict=True):
            total[row] += weight
        for (row, column), weight in zip(graph.edge_index.T, weights, strict=True):
            message[row] += (weight / (total[row] + 1e-8))[:, None] * v[column]
        norm = (s[f"gtLayers.{layer}.norm.weight"], s[f"gtLayers.{layer}.norm.bias"])
        h = F.layer_norm(message.flatten(1) + h, (WIDTH,), *norm, eps=1e-6)
    return F.linear(h, s["inverW_P.weight"], s["inverW_P.bias"])


def some_graph(nodes: int, edges: list[tuple[int, int]]) -> Graph:
    features = torch.randn(nodes, INPUT, generator=torch.Generator().manual_seed(nodes))
    index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
    return Graph(tuple(f"paper {i}" for i in range(nodes)), index, features)


def write_grounding(folder: Path, **settings: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(GROUNDING | settings))
    torch.save(grounding_state(), folder / "clip_gt_epoch2.pkl")
    return folder


def write_language_model(folder: Path) -> LlamaForCausalLM:
    """The language model's folder, without the graph's tokens in the tokenizer, as a base model's has none."""
    tokenizer = train_tokenizer([WORDS] * 4, 300, TaskTable.from_dict({"tasks": []}))
    save_tokenizer(tokenizer, folder)
    torch.manual_seed(1)
    theirs = LlamaForCausalLM(LlamaConfig(**TEXT, vocab_size=len(tokenizer) + 3)).eval()
    state: dict[str, Tensor] = {name: value * 3 for name, value in theirs.state_dict().items()}
    theirs.load_state_dict(state)
    state |= {"model.graph_projector.weight": torch.randn(32, OUTPUT), "model.graph_projector.bias": torch.randn(32)}
    state |= {f"model.graph_tower.{name[4:]}": value for name, value in grounding_state().items() if "gnn." in name}
    torch.save(state, folder / "pytorch_model.bin")
    config = theirs.config.to_dict() | {"model_type": "GraphLlama", "use_graph_start_end": True}
    (folder / "config.json").write_text(json.dumps(config | {"graph_hidden_size": OUTPUT, "use_graph_proj": True}))
    return theirs


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Generalist, LlamaForCausalLM, Path]:
    folder = tmp_path_factory.mktemp("graphgpt")
    theirs = write_language_model(folder / "theirs")
    tower = write_grounding(folder / "tower")
    arguments = ["convert", "graphgpt", str(folder / "theirs"), "--tower", str(tower), "--out", str(folder / "ours")]
    assert models_main(arguments) == 0
    return Generalist.from_pretrained(folder / "ours"), theirs, folder


def encoded(encoder: Any, graphs: list[Graph]) -> Tensor:
    items = [encoder.processor(graph) for graph in graphs]
    features: Tensor = encoder(encoder.collate([item for item, _ in items]), Layout([layout for _, layout in items]))
    return features


GRAPHS = [some_graph(5, [(0, 1), (1, 0), (2, 0), (3, 1), (3, 1), (0, 4)]), some_graph(3, [(0, 2)]), some_graph(1, [])]


def test_features_equal_theirs_alone_and_together(converted: tuple[Generalist, LlamaForCausalLM, Path]) -> None:
    encoder, state = converted[0].encoders["graph"], grounding_state()
    expected = [their_features(state, graph) for graph in GRAPHS]
    torch.testing.assert_close(encoded(encoder, GRAPHS), torch.cat(expected), atol=1e-4, rtol=1e-4)
    for graph, features in zip(GRAPHS, expected, strict=True):
        torch.testing.assert_close(encoded(encoder, [graph]), features, atol=1e-4, rtol=1e-4)


def test_logits_equal_theirs_with_two_graphs(converted: tuple[Generalist, LlamaForCausalLM, Path]) -> None:
    """Both graphs are spliced in, where the released loop kept only the last."""
    ours, theirs, folder = converted
    content = (Part("graph", media="a"), Part("graph", media="b"), Part("text", text="where is the red 7 ?"))
    plan = ours.plan()
    rendered = render_prompt([Message("user", content)], {"a": GRAPHS[0], "b": GRAPHS[1]}, plan)
    ids = torch.tensor(rendered.input_ids)
    start, end = (plan.tokenizer.convert_tokens_to_ids(token) for token in (START, END))
    media = plan.vocabulary.media_ids["graph"]
    first = ids.tolist().index(start)
    assert ids[first : first + 11].tolist() == [start, *[media] * 5, end, start, *[media] * 3]
    assert SYSTEM.split(".")[0] in plan.tokenizer.decode(ids[:first]) and PATCH in plan.tokenizer.get_vocab()
    state = torch.load(folder / "theirs" / "pytorch_model.bin", weights_only=True)
    embeds = theirs.get_input_embeddings()(ids.clamp(max=theirs.config.vocab_size - 1))
    nodes = torch.cat([their_features(grounding_state(), graph) for graph in GRAPHS[:2]])
    embeds[ids == media] = F.linear(nodes, state["model.graph_projector.weight"], state["model.graph_projector.bias"])
    expected = theirs(inputs_embeds=embeds[None]).logits[0]
    encoder, projector = ours.encoders["graph"], ours.projectors["graph"]
    layout = Layout([encoder.processor.layout((graph.num_nodes,)) for graph in GRAPHS[:2]])
    tokens, _ = projector(encoded(encoder, GRAPHS[:2]), layout)
    model = ours.language_model
    ours_embeds = model.embed(ids)
    ours_embeds[ids == media] = tokens
    found = model.logits(model(ours_embeds[None], torch.arange(len(ids))[None], [len(ids)]))
    torch.testing.assert_close(found[:, : expected.shape[1]], expected, atol=1e-4, rtol=1e-4)


def test_what_is_missing_is_named(
    converted: tuple[Generalist, LlamaForCausalLM, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(converted[2] / "theirs")

    def refused(*arguments: str) -> str:
        out = tmp_path / "ours"
        assert models_main(["convert", "graphgpt", source, "--out", str(out), *arguments]) == 2 and not out.exists()
        return capsys.readouterr().err

    assert "expected the folder of the grounding stage (--tower), got none" in refused()
    gcn = write_grounding(tmp_path / "gcn", gnn_type="gcn")
    assert "gnn_type: expected 'gt', a graph transformer, got 'gcn'" in refused("--tower", str(gcn))
    deeper = write_grounding(tmp_path / "deeper", gt_layers=4)
    assert "missing ['encoders.graph.layers.3." in refused("--tower", str(deeper))
    (deeper / "second.pkl").write_bytes(b"")
    assert "expected one .pkl, got ['clip_gt_epoch2.pkl', 'second.pkl']" in refused("--tower", str(deeper))
    assert "expected the folder of the grounding stage with config.json" in refused("--tower", str(tmp_path))


def test_a_pickle_that_does_something_is_refused(
    converted: tuple[Generalist, LlamaForCausalLM, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    tower = write_grounding(tmp_path / "tower")
    torch.save({"gnn.W_pos": Attack()}, tower / "clip_gt_epoch2.pkl")
    arguments = ["--tower", str(tower), "--out", str(tmp_path / "ours")]
    assert models_main(["convert", "graphgpt", str(converted[2] / "theirs"), *arguments]) == 2
    assert "clip_gt_epoch2.pkl" in capsys.readouterr().err and not (tmp_path / "owned").exists()


def test_messages_arrive_where_edges_point() -> None:
    """By default; the released layer let them arrive at the other end."""
    torch.manual_seed(0)
    graph = some_graph(3, [(1, 0)])
    assert graph.node_features is not None
    heard = {}
    for messages_to in ("destination", "source"):
        encoder = GraphGPTEncoder(INPUT, WIDTH, OUTPUT, LAYERS, HEADS, messages_to=messages_to).eval()
        item, layout = encoder.processor(graph)
        item["x"] = item["x"].clone().requires_grad_()
        encoder(item, Layout([layout]))[0].sum().backward()
        heard[messages_to] = item["x"].grad.abs().sum(1).gt(0).tolist()
    assert heard == {"destination": [True, True, False], "source": [True, False, False]}


def test_nodes_without_their_numbers_are_refused() -> None:
    processor = GraphGPTEncoder(INPUT, WIDTH, OUTPUT, LAYERS, HEADS).processor
    bare = Graph(("a", "b"), torch.zeros(2, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected node_features \(2, 6\), got none"):
        processor(bare)
    with pytest.raises(ValueError, match=r"expected node_features \(2, 6\), got \(2, 5\)"):
        processor(Graph(bare.node_texts, bare.edge_index, torch.zeros(2, 5)))
    with pytest.raises(ValueError, match="destination or source, got 'both'"):
        GraphGPTEncoder(messages_to="both")
