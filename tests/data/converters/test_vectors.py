"""Pairs of texts, BEIR folders, and knowledge graphs with descriptions."""

from __future__ import annotations

import json
from pathlib import Path

from data.shards import Sample
from tests.data.converters.conftest import Convert, report, write


def sides(sample: Sample) -> list[tuple[str, str, dict[str, str]]]:
    """Text, task and target of every conversation."""
    found = []
    for user, reply in sample.record.conversations:
        (call,) = reply.content
        found.append((user.content[0].text, call.task, sample.record.targets[str(call.target)].value))
    return found


def test_pairs_of_json_lines(tmp_path: Path, convert: Convert) -> None:
    lines = [
        {"query": "what purrs?", "pos": ["a cat", "a lion"], "neg": ["a dog", "a cow", "a hen"], "id": 3},
        {"anchor": "what barks?", "positive": "a  dog", "negative": "a cat"},
        {"query": "what flies?", "pos": []},
        {"pos": ["a cat"]},
        ["no object"],
    ]
    source = write(tmp_path / "pairs.jsonl", "\n".join(json.dumps(line) for line in lines))
    first, second = convert("pairs", source, "--max-negatives", "2", "--instruction", "Find it:", status=1)
    key = first.record.key
    assert sides(first) == [
        ("Find it: what purrs?", "embed", {"group": key, "role": "query", "item": "a cat"}),
        ("a cat", "embed", {"group": key, "role": "positive", "item": "a cat"}),
        ("a dog", "embed", {"group": key, "role": "negative"}),
        ("a cow", "embed", {"group": key, "role": "negative"}),
    ]
    assert [text for text, _, _ in sides(second)] == ["Find it: what barks?", "a dog", "a cat"]
    told = report(tmp_path / "out")
    assert set(told["skipped"]) == {"nothing that answers the query", "no query", "line that is no object"}
    assert told["unknown_fields"] == {"id": 1}
    whole, _ = convert("pairs", source, "--max-positives", "2", status=1, out=tmp_path / "whole")
    assert [value["role"] for _, _, value in sides(whole)] == ["query", "positive", "positive", *["negative"] * 3]
    assert "item" not in sides(whole)[0][2]


def test_a_beir_folder(tmp_path: Path, convert: Convert) -> None:
    beir = tmp_path / "beir"
    corpus = [{"_id": "p1", "title": "Cats", "text": "purr"}, {"_id": "p2", "title": "", "text": "dogs bark"}]
    write(beir / "corpus.jsonl", "\n".join(json.dumps(row) for row in corpus))
    write(beir / "queries.jsonl", json.dumps({"_id": "q1", "text": "what purrs?"}))
    write(beir / "qrels" / "dev.tsv", "query-id\tcorpus-id\tscore\nq1\tp1\t1\nq1\tp2\t0\nq1\tp9\t1\n")
    (sample,) = convert("pairs", beir, "--task", "find", status=1)
    assert sample.record.split == "val"
    assert [(text, task) for text, task, _ in sides(sample)] == [
        ("what purrs?", "find"),
        ("Cats purr", "find"),
        ("dogs bark", "find"),
    ]
    assert set(report(tmp_path / "out")["skipped"]) == {"judgement of an unknown query or passage"}
    (beir / "qrels" / "dev.tsv").unlink()
    assert convert("pairs", beir, status=2, out=tmp_path / "none") == []


def test_entities_with_descriptions(tmp_path: Path, convert: Convert) -> None:
    graph = tmp_path / "graph"
    write(graph / "entity2text.txt", "e1\ta city on the rhone\ne2\ta country\n")
    write(graph / "ind-train.tsv", "e1\tpart of\te2\ne1\tpart of\te3\nbroken\n")
    write(graph / "ind-dev.tsv", "e2\thas\te1\n")
    train, val = convert("entity-triples", graph, "--inductive", "--max-words", "3", status=1)
    assert (train.record.split, val.record.split) == ("train", "val")
    assert sides(train) == [
        ("a city on", "entity", {"group": train.record.key, "role": "query", "item": "e1", "relation": "part of"}),
        ("a country", "entity", {"group": train.record.key, "role": "positive", "item": "e2"}),
    ]
    assert val.record.meta["triple"] == ["e2", "has", "e1"]
    assert set(report(tmp_path / "out")["skipped"]) == {"entity without a description", "line that is no triple"}
    assert convert("entity-triples", graph, status=2, out=tmp_path / "none") == []
