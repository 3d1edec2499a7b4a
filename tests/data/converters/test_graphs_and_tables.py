"""Graphs with instructions, whole graphs as tables, knowledge triples, parquet and Hugging Face datasets."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch_geometric.data import Data

from data.converters.graph_tables import neighbourhood
from data.media import decode_media
from layers.media import Graph
from tests.data.converters.conftest import Convert, audio_bytes, image_bytes, report, write
from tests.data.converters.test_vision import texts


def graph_of(sample, name: str = "graph") -> Graph:
    media = sample.record.media[name]
    graph = decode_media(media, sample.members[media.file])
    assert isinstance(graph, Graph)
    return graph


@pytest.fixture
def instructions(tmp_path: Path) -> Path:
    one = {"node_idx": 7, "node_list": [3, 7, 9], "edge_index": [[0, 1, 2], [1, 2, 0]]}
    pair = {f"{name}_{i}": value for i in (1, 2) for name, value in one.items()}
    ask = [{"from": "human", "value": "Given a graph: \n<graph>, which class?"}, {"from": "gpt", "value": "cs.LG"}]
    both = [{"from": "human", "value": "<graph> and <graph>: linked?"}, {"from": "gpt", "value": "yes"}]
    items = [
        {"id": "arxiv_test_7", "graph": one, "conversations": ask},
        {"id": "arxiv_test_7_LP", "graph": pair, "conversations": both},
        {"id": "a", "graph": one | {"edge_index": [[0], [3]]}, "conversations": ask},
        {"id": "b", "graph": one | {"node_idx": 4}, "conversations": ask},
        {"id": "c", "graph": one | {"node_list": [3, 7, 99]}, "conversations": ask},
        {"id": "d", "graph": one, "conversations": both},
    ]
    return write(tmp_path / "instructions.json", items)


def test_graphgpt_with_a_table_of_texts(tmp_path: Path, convert: Convert, instructions: Path) -> None:
    table = write(tmp_path / "texts.csv", "node,text\n" + "".join(f'{i},"Title {i}, abstract"\n' for i in range(10)))
    samples = convert("graphgpt", instructions, "--node-texts", str(table), status=1)
    assert [sample.record.meta["id"] for sample in samples] == ["arxiv_test_7", "arxiv_test_7_LP"]
    graph = graph_of(samples[0])
    assert graph.node_texts == tuple(f"Title {i}, abstract" for i in (7, 3, 9))  # the target first
    assert graph.edge_index.tolist() == [[1, 0, 2], [0, 2, 1]]
    assert [part.type for part in samples[0].record.messages[0].content] == ["text", "graph", "text"]
    assert list(samples[1].record.media) == ["graph_1", "graph_2"]
    assert len(report(tmp_path / "out")["skipped"]) == 4


def test_graphgpt_with_saved_data(tmp_path: Path, convert: Convert, instructions: Path, capsys) -> None:
    data = Data(
        x=torch.zeros(10, 2), edge_index=torch.zeros(2, 0, dtype=torch.long), raw_texts=[f"t{i}" for i in range(10)]
    )
    torch.save({"arxiv": data}, tmp_path / "all.pt")
    arguments = ("--graph-data", str(tmp_path / "all.pt"))
    samples = convert("graphgpt", instructions, *arguments, "--dataset", "arxiv", status=1)
    assert graph_of(samples[0]).node_texts == ("t7", "t3", "t9")
    assert convert("graphgpt", instructions, *arguments, status=2, out=tmp_path / "none") == []
    assert "--dataset: expected one of ['arxiv']" in capsys.readouterr().err


def test_graphgpt_with_numbers(tmp_path: Path, convert: Convert, instructions: Path, capsys) -> None:
    """The released data have numbers and no texts."""
    numbers = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    torch.save({"arxiv": Data(x=numbers, edge_index=torch.zeros(2, 0, dtype=torch.long))}, tmp_path / "all.pt")
    arguments = ("--graph-data", str(tmp_path / "all.pt"), "--dataset", "arxiv")
    samples = convert("graphgpt", instructions, *arguments, "--node-features", "x", status=1)
    graph = graph_of(samples[1], "graph_2")
    assert graph.node_texts == ("", "", "") and graph.node_features is not None
    assert torch.equal(graph.node_features, numbers[[7, 3, 9]])
    assert len(report(tmp_path / "out")["skipped"]) == 4  # "c": node 99 has no row
    table = write(tmp_path / "texts.csv", "".join(f"{i},Title {i}\n" for i in range(10)))
    both = (*arguments, "--node-features", "x", "--node-texts", str(table))
    assert (
        graph_of(convert("graphgpt", instructions, *both, status=1, out=tmp_path / "both")[0]).node_texts[0]
        == "Title 7"
    )
    for given, message in (
        (arguments, "expected a list of texts in 'raw_texts', got ['edge_index', 'x']"),
        ((*arguments, "--node-features", "y"), "expected numbers per node in 'y', got ['edge_index', 'x']"),
        (("--node-features", "x"), "expected --node-texts or --graph-data, got neither"),
        (("--node-texts", str(table), "--node-features", "x"), "--node-features: expected --graph-data, got none"),
    ):
        assert convert("graphgpt", instructions, *given, status=2, out=tmp_path / "none") == []
        assert message in capsys.readouterr().err


def test_saved_data_run_nothing(tmp_path: Path, convert: Convert, instructions: Path, capsys) -> None:
    class Attack:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save({"arxiv": Attack()}, tmp_path / "all.pt")
    assert convert("graphgpt", instructions, "--graph-data", str(tmp_path / "all.pt"), status=2) == []
    assert "expected torch_geometric data" in capsys.readouterr().err and not (tmp_path / "owned").exists()


def test_node_and_edge_tables(tmp_path: Path, convert: Convert) -> None:
    nodes = write(
        tmp_path / "nodes.csv", "id,text,label,split,year\na,A,x,train,1\nb,B,y,test,2\nc,C,,,3\nd,D,x,nowhere,4\n"
    )
    edges = write(tmp_path / "edges.csv", "source,target\na,b\nb,c\n")
    samples = convert("graph-tables", nodes, "--edges", str(edges), "--hops", "1", status=1)
    found = {sample.record.meta["id"]: sample for sample in samples}
    assert set(found) == {"a", "b"} and found["b"].record.split == "test"
    assert graph_of(found["a"]).node_texts == ("A", "B") and graph_of(found["a"]).edge_index.tolist() == [[0], [1]]
    assert set(graph_of(found["b"]).node_texts) == {"A", "B", "C"} and texts(found["b"])[1] == "y"
    told = report(tmp_path / "out")
    assert told["unknown_fields"] == {"nodes.year": 4} and len(told["skipped"]) == 2
    arguments = ("--edges", str(edges), "--class-task", "node_class")
    called = convert("graph-tables", nodes, *arguments, status=1, out=tmp_path / "calls")
    assert {item.record.targets["t0"].value for item in called} == {"x", "y"}
    stray = write(tmp_path / "stray.csv", "source,target\na,z\n")
    assert convert("graph-tables", nodes, "--edges", str(stray), status=2, out=tmp_path / "none") == []


def test_triples_hide_the_one_that_is_asked(tmp_path: Path, convert: Convert) -> None:
    lines = "Oslo\tcapital of\tNorway\nBergen\tlies in\tNorway\nNorway\tborders\tSweden\n"
    samples = convert("graph-tables", write(tmp_path / "kg.tsv", lines))
    assert [texts(sample) for sample in samples] == [
        ["Oslo – capital of – ?", "Norway"],
        ["Bergen – lies in – ?", "Norway"],
        ["Norway – borders – ?", "Sweden"],
    ]
    third = graph_of(samples[2])
    assert third.node_texts[0] == "Norway" and "borders" not in third.node_texts and "Sweden" not in third.node_texts
    assert {"capital of", "lies in", "Oslo", "Bergen"} <= set(third.node_texts)
    assert graph_of(samples[0]).node_texts == ("Oslo",)
    broken = write(tmp_path / "broken.tsv", "Oslo\tNorway\n")
    assert convert("graph-tables", broken, status=2, out=tmp_path / "none") == []


def test_neighbourhoods_grow_by_hops_and_keep_their_limit() -> None:
    import random

    line = {i: [j for j in (i - 1, i + 1) if 0 <= j < 10] for i in range(10)}
    assert sorted(neighbourhood(5, line, 2, 99, random.Random(0))) == [3, 4, 5, 6, 7]
    assert neighbourhood(5, line, 9, 3, random.Random(0))[0] == 5
    assert len(neighbourhood(5, line, 9, 3, random.Random(0))) == 3
    assert neighbourhood(0, line, 3, 99, random.Random(0), without=[(1, 0)]) == [0]


def test_parquet(tmp_path: Path, convert: Convert) -> None:
    table = pa.table(
        {
            "image": [{"bytes": image_bytes(), "path": "a.png"}, {"bytes": None, "path": "b.png"}, None],
            "sound": [audio_bytes(), audio_bytes(seed=1), audio_bytes()],
            "question": ["What?", "Who?", "Where?"],
            "answer": ["this", "that", "there"],
            "level": [1, 2, 3],
            "extra": [None, None, None],
        }
    )
    pq.write_table(table, tmp_path / "data.parquet")
    write(tmp_path / "media" / "b.png", image_bytes(seed=5))
    arguments = [
        "--question",
        "question",
        "--answer",
        "answer",
        "--image",
        "image",
        "--audio",
        "sound",
        "--keep",
        "level",
    ]
    arguments += ["--media-root", str(tmp_path / "media")]
    samples = convert("tables", tmp_path / "data.parquet", *arguments, status=1)
    assert [texts(sample) for sample in samples] == [["What?", "this"], ["Who?", "that"]]
    assert [sample.record.meta for sample in samples] == [{"level": 1}, {"level": 2}]
    assert samples[1].members["image0.png"] == image_bytes(seed=5)
    assert report(tmp_path / "out")["unknown_fields"] == {"extra": 3}
    wrong = ["--question", "question", "--answer", "reply"]
    assert convert("tables", tmp_path / "data.parquet", *wrong, status=2, out=tmp_path / "none") == []


def _save(folder: Path, file: str, labels: list[str]) -> None:
    """The layout of ``datasets.Dataset.save_to_disk``: Arrow streams beside two JSON files."""
    folder.mkdir(parents=True)
    table = pa.table({"image": [image_bytes() for _ in labels], "label": labels})
    with pa.OSFile(str(folder / file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    write(folder / "state.json", {"_data_files": [{"filename": file}]})
    write(folder / "dataset_info.json", {"features": {}})


def test_a_dataset_saved_to_disk(tmp_path: Path, convert: Convert) -> None:
    folder = tmp_path / "saved"
    _save(folder, "data-00000-of-00001.arrow", ["noise"])
    write(folder / "cache-0123.arrow", b"what a map left there")
    (sample,) = convert("tables", folder, "--question", "{What is it?}", "--answer", "label", "--image", "image")
    assert texts(sample) == ["What is it?", "noise"] and sample.members["image0.png"] == image_bytes()
    assert sample.record.split == "train"
    write(folder / "state.json", {"files": []})
    asked = ("--question", "{What is it?}", "--answer", "label")
    assert convert("tables", folder, *asked, status=2, out=tmp_path / "none") == []


def test_splits_that_the_source_names_stay_apart(tmp_path: Path, convert: Convert) -> None:
    """The layouts of ``datasets.DatasetDict.save_to_disk``, and of parquet on Hugging Face's hub."""
    folder = tmp_path / "saved"
    for name, labels in (("train", ["a", "b"]), ("validation", ["c"]), ("test", ["d"])):
        _save(folder / name, "data-00000-of-00001.arrow", labels)
    write(folder / "dataset_dict.json", {"splits": ["train", "validation", "test"]})
    asked = ("--question", "{What is it?}", "--answer", "label")
    samples = convert("tables", folder, *asked, out=tmp_path / "disk")
    found = sorted((sample.record.split, texts(sample)[1]) for sample in samples)
    assert found == [("test", "d"), ("train", "a"), ("train", "b"), ("val", "c")]
    hub = tmp_path / "hub"
    hub.mkdir()
    for name in ("train", "test"):
        pq.write_table(pa.table({"label": [name]}), hub / f"{name}-00000-of-00001.parquet")
    samples = convert("tables", hub, *asked, out=tmp_path / "parquet")
    found = sorted((sample.record.split, texts(sample)[1]) for sample in samples)
    assert found == [("test", "test"), ("train", "train")]
    (folder / "test").rename(folder / "unsupervised")
    assert convert("tables", folder, *asked, status=2, out=tmp_path / "none") == []
