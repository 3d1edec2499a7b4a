from __future__ import annotations

import ast
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

from data.quickstart import graphs, modules
from data.quickstart.routing import CYCLE, routing


@pytest.fixture(scope="module")
def library() -> modules.ModuleGraph:
    return modules.read_module_graph()


def edges_of(members: dict[str, bytes], name: str) -> set[tuple[int, int]]:
    return set(zip(*json.loads(members[name])["edge_index"], strict=True))


def test_known_imports_are_found(library):
    index = {name: i for i, name in enumerate(library.names)}
    for importer, imported in (
        ("json", "json.decoder"),  # from .decoder import
        ("json.decoder", "re"),
        ("email.mime.text", "email.mime.nonmultipart"),
        ("xml.dom.minidom", "xml.dom.minicompat"),
        ("asyncio.base_events", "socket"),
        ("webbrowser", "shutil"),
    ):
        assert (index[importer], index[imported]) in library.edge_set
    assert (index["socket"], index["asyncio.base_events"]) not in library.edge_set
    assert all(one != other for one, other in library.edges)


def test_relative_imports_resolve_against_the_package():
    def found(source: str, name: str, package: bool) -> set[str]:
        return set(modules._imports(name, ast.parse(source), package))

    assert found("from . import a", "p.q", False) == {"p.a"}
    assert found("from . import a", "p.q", True) == {"p.q.a"}
    assert found("from ..r import a", "p.q.s", False) == {"p.r.a"}
    assert found("def f():\n    try:\n        import p.t as u\n    except E:\n        import v", "p.q", False) == {
        "p.t",
        "v",
    }
    whole = ast.parse(Path(ast.__file__).with_name("subprocess.py").read_text())
    walked = sum(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(whole))
    assert sum(isinstance(node, ast.Import | ast.ImportFrom) for node in modules._statements(whole)) == walked > 20
    assert modules._longest("p.r.a", {"p": 0, "p.r": 1}) == 1 and modules._longest("zlib", {"p": 0}) is None


def test_texts_do_not_give_the_family_or_the_name_away(library):
    packages = [package for family in modules.FAMILIES.values() for package in family]
    for name, text in zip(library.names, library.texts, strict=True):
        assert text and len(text.split()) <= modules.NODE_WORDS
        assert not [package for package in packages if package.rstrip("s") in text], (name, text)
        assert name.rsplit(".", 1)[-1].strip("_").lower() not in text.split(), (name, text)
    assert modules.mask("The XML.dom package, see xmlrpc.client", "xml.dom") == "the _ _ package see _ client"


def test_targets_are_split_within_families(library):
    split = library.split(0)
    assert len(set.union(*map(set, split.values()))) == sum(map(len, split.values()))
    for name in split:
        assert {library.families[i] for i in split[name]} >= set(modules.FAMILIES)


def test_a_subgraph_begins_with_its_target_and_stays_small(library):
    rng = np.random.default_rng(0)
    for target in range(0, len(library.names), 20):
        graph = graphs.subgraph(library, target, rng)
        assert graph.node_texts[0] == library.texts[target] and graph.num_nodes <= graphs.MAX_NODES
        reached = {0}
        for _ in range(2):
            reached |= {b for a, b in graph.edge_index.T.tolist() if a in reached} | {
                a for a, b in graph.edge_index.T.tolist() if b in reached
            }
        assert len(reached) == graph.num_nodes


def test_the_asked_edge_is_in_neither_graph(library):
    index = {name: i for i, name in enumerate(library.names)}
    allowed = set(library.split(0)["test"])
    for number in range(60):
        record, members = graphs.link(library, "test", number, 0)
        first, second = (index[name] for name in record.meta["modules"])
        positive = record.meta["answer"] == "yes"
        assert {first, second} <= allowed and positive == ((first, second) in library.edge_set) == (number % 2 == 0)
        assert record.targets["t0"].value == float(positive)
        for file, other in (("first.json", second), ("second.json", first)):
            texts = json.loads(members[file])["node_texts"]
            if library.texts.count(library.texts[other]) == 1 and library.texts[other] in texts:
                place = texts.index(library.texts[other])
                assert not {(0, place), (place, 0)} & edges_of(members, file)


def test_families_come_in_turn_and_answers_are_labels(library):
    counts: Counter[str] = Counter()
    for number in range(32):
        record, _ = graphs.node_family(library, "test", number, 0)
        assert modules.family_of(record.meta["module"]) == record.targets["t0"].value == record.meta["answer"]
        counts[record.meta["answer"]] += 1
    assert counts == dict.fromkeys(modules.FAMILIES, 4)


def test_matching_says_where_each_nodes_text_stands(library):
    answers = set()
    for number in range(12):
        record, members = graphs.match(library, "test", number, 0)
        nodes = json.loads(members["graph.json"])["node_texts"]
        listed = dict(re.findall(r"(\d): (.+?)(?= \d: |$)", record.messages[0].content[-1].text))
        for node, place in zip(nodes, record.meta["answer"].split(), strict=True):
            assert node.startswith(listed[place])
        answers.add(record.meta["answer"])
    assert len(answers) == 6


def test_missing_modules_are_named(tmp_path, monkeypatch):
    path = tmp_path / "modules.txt"
    path.write_text("json\nno_such_module\n")
    monkeypatch.setattr(modules, "MODULE_LIST", path)
    with pytest.raises(modules.ModuleListError, match="lacks 1 of 2 modules: no_such_module"):
        modules.read_module_graph()


def test_routing_has_the_promised_shares(library):
    silent = [kind for kind in CYCLE if kind in ("negated", "refused_drawing", "exists", "asked")]
    assert len(silent) / len(CYCLE) >= 0.25 and CYCLE.count("two") / len(CYCLE) == 0.1
    tasks: Counter[str] = Counter()
    for number in range(2 * len(CYCLE)):
        record, _ = routing(library, "test", number, 0)
        calls = [part for part in record.messages[-1].content if part.type == "call"]
        assert record.meta["num_calls"] == len(calls)
        if len(calls) == 1:
            tasks[calls[0].task] += 1
            assert calls[0].prompt in record.messages[0].content[-1].text or calls[0].task == "edit"
    assert set(tasks) == {"ground", "seg", "draw", "edit", "node_class", "link"} and len(set(tasks.values())) == 1
