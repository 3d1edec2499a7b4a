"""Given calls, indices, and stateful heads in a session: the tiny generalist of configs/debug/vectors.yaml."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data.__main__ import main as data_main
from data.packing import pack
from data.records import Record
from data.shards import read_samples
from data.stream.samples import render_sample
from heads.embedding import EmbeddingHead, ExactIndex
from inference.conversation import Conversation
from inference.files import decode_vector, result_to_json
from inference.given import answer_given, build_index
from inference.session import Session
from layers.calls import Call, EmbeddingResult, HeadContext, RankingResult, Result, ResultRef, SelectionResult
from layers.media import Graph
from models.build import build_generalist
from models.generalist import Generalist

CONFIG = Path(__file__).parents[2] / "configs" / "debug" / "vectors.yaml"
TEXTS = {"cat": "a cat purrs when it is content", "dog": "a dog barks", "kettle": "a kettle boils water for the tea"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    for line in CONFIG.read_text().splitlines():
        if line.startswith("#   python -m data "):
            command = line.replace("runs/debug", str(folder)).replace("configs/", f"{CONFIG.parents[1]}/")
            assert data_main(shlex.split(command)[4:]) == 0
    return folder / "vectors"


@pytest.fixture(scope="module")
def generalist(data: Path) -> Generalist:
    config = yaml.safe_load(CONFIG.read_text())["model"]["init_args"]["generalist"]
    torch.manual_seed(0)
    made = build_generalist({**config, "tokenizer": str(data / "tokenizer")})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made.eval()


@pytest.fixture
def session(generalist: Generalist) -> Session:
    for head in generalist.heads.values():
        head.reset()
    return Session(generalist, constrained=True, max_new_tokens=24)


def conversations() -> dict[str, Conversation]:
    return {name: Conversation.ask(text) for name, text in TEXTS.items()}


def test_a_given_call_answers_as_a_written_one(session: Session) -> None:
    asked = list(conversations().values())
    given = answer_given(session, asked, Call("embed_animals", ""))
    replies = session.generate(asked, opening="embed_animals")
    for one, reply in zip(given, replies, strict=True):
        assert isinstance(one, EmbeddingResult) and isinstance(reply.results[0], EmbeddingResult)
        torch.testing.assert_close(one.vector, reply.results[0].vector, atol=1e-4, rtol=1e-4)
        assert one.call.task == "embed_animals"
    assert not torch.allclose(given[0].vector, given[1].vector, atol=1e-3)
    for result in answer_given(session, asked, Call("embed_animals", ""), max_tokens=1)[:1]:
        torch.testing.assert_close(result.vector, given[0].vector, atol=1e-4, rtol=1e-4)


def test_what_training_compares_is_what_an_index_holds(session: Session, data: Path) -> None:
    """The vectors of a record's segments in a pack are those of its conversations by themselves."""
    samples = {sample.key: sample for sample in read_samples([str(p) for p in sorted(data.glob("data/train/*.tar"))])}
    sample = samples["embed-0"]
    rendered = render_sample(sample, session.plan)
    batch = pack([render_sample(samples["embed-3"], session.plan), rendered], session.plan)
    model = session.generalist
    with torch.no_grad():
        states, encoded = model.read(batch)
        calls = batch.calls["embed"]
        contexts = model.head_contexts(calls, batch.media, encoded)
        read = model.head_states([item.call for item in calls], states, batch.input_ids[0])
        vectors = model.heads["embed"](read, [1] * 6, contexts)
        term = model.heads["embed"].loss(vectors, [item.target for item in calls])
    asked = [Conversation(turns[:-1]) for turns in sample.record.conversations]
    given = answer_given(session, asked, Call("embed_animals", ""))
    torch.testing.assert_close(vectors[3:], torch.stack([r.vector for r in given]), atol=1e-4, rtol=1e-4)
    assert batch.counts["embed"] == term.count == 2


def test_an_index_answers_a_search(session: Session) -> None:
    index = build_index(session, conversations(), "embed_animals")
    assert index.items == tuple(TEXTS)
    session.prime("embed_animals", index)
    (reply,) = session.generate([Conversation.ask(TEXTS["dog"])], opening="embed_animals")
    (result,) = reply.results
    assert isinstance(result, RankingResult) and len(result.items) == 3
    assert result.items[0] == "dog" and result.scores[0] == pytest.approx(1, abs=1e-4)
    assert result_to_json(result)["items"][0] == "dog"
    with pytest.raises(ValueError, match="got a RankingResult; reset the head, it has been primed"):
        build_index(session, {"cow": Conversation.ask("a cow")}, "embed_animals")
    session.reset("embed_animals")
    read: list[int] = []
    larger = build_index(
        session, {**conversations(), "cow": Conversation.ask("a cow")}, "embed_animals", index, read.append
    )
    assert larger.items == (*TEXTS, "cow") and sum(read) == 1
    assert torch.equal(larger.vectors[:3], index.vectors)


def test_one_call_embeds_an_entity_and_the_next_follows_a_relation(session: Session) -> None:
    session.prime("related", build_index(session, conversations(), "entity"))
    follow = Call("related", "part of", (ResultRef(0),))
    table = session.generalist.heads["entities"]
    (entity,) = answer_given(session, [Conversation.ask(TEXTS["cat"])], Call("entity", ""))
    context = HeadContext(follow, earlier_results=[entity])
    (expected,) = table.decode(table(None, [0], [context]), [context])
    assert isinstance(expected, RankingResult) and set(expected.items) == set(TEXTS)
    torch.testing.assert_close(decode_vector(result_to_json(entity)["float32"]), entity.vector)


def test_a_pointer_answers_with_nodes(session: Session) -> None:
    graph = Graph(("3 kg", "1 kg", "2 kg"), torch.tensor([[1, 2], [0, 0]]))
    (result,) = answer_given(session, [Conversation.ask("sort them", graphs=[graph])], Call("order", ""))
    assert isinstance(result, SelectionResult) and set(result.indices) <= {0, 1, 2}
    assert result_to_json(result) == {"type": "selection", "indices": list(result.indices), "score": result.score}


def test_calls_that_cannot_be_given_say_why(session: Session) -> None:
    with pytest.raises(ValueError, match=r"expected one of .*'embed_animals'.* got 'embed'"):
        answer_given(session, [Conversation.ask("a")], Call("embed", ""))
    with pytest.raises(ValueError, match=r"conversation 0, task 'order': expected the media \['graph'\], got \[\]"):
        answer_given(session, [Conversation.ask("a")], Call("order", ""))
    with pytest.raises(ValueError, match="expected embeddings, got a SelectionResult"):
        graph = Graph(("3 kg",), torch.zeros(2, 0, dtype=torch.int64))
        build_index(session, {"a": Conversation.ask("sort", graphs=[graph])}, "order")
    assert answer_given(session, [], Call("compare", "")) == []


class _Memory(EmbeddingHead):
    """A policy with memory, as a later head will be: it answers with how much of its episode it has seen."""

    def decode(self, predictions: Any, contexts: Any) -> list[Result]:
        results: list[Result] = []
        for context in contexts:
            seen = self.memory.setdefault(context.episode, [])
            seen.append(context.call.prompt)
            results.append(RankingResult(context.call, tuple(seen)))
        return results


def test_a_head_with_memory_keeps_its_episodes_apart(generalist: Generalist, session: Session) -> None:
    former = generalist.heads["embed"]
    head = _Memory(48, 32, domains=["embed_animals", "embed_machines"])
    before = set(generalist.state_dict())
    generalist.heads["embed"] = head
    try:
        asked = Conversation.ask("a cat")
        lengths = []
        for episode in ("one", "two", "one", "one"):
            (reply,) = session.generate([replace(asked, episode=episode)], opening="embed_animals")
            lengths.append(len(reply.results[0].items))
        assert lengths == [1, 1, 2, 3]
        (given,) = answer_given(session, [replace(asked, episode="two")], Call("embed_animals", ""))
        assert len(given.items) == 2
        session.reset("embed_animals", "one")
        (reply,) = session.generate([replace(asked, episode="one")], opening="embed_animals")
        assert len(reply.results[0].items) == 1
        assert {name for name in generalist.state_dict() if "memory" in name} == set()
        assert before >= {name for name in generalist.state_dict() if not name.startswith("heads.embed.temperature")}
    finally:
        generalist.heads["embed"] = former


def test_wrong_support_is_refused(session: Session) -> None:
    with pytest.raises(ValueError, match="expected an index of width 32, got one of width 3"):
        session.prime("embed_animals", ExactIndex(torch.eye(3), ["a", "b", "c"]))
    with pytest.raises(ValueError, match="PointerHead keeps no state"):
        session.prime("order", ExactIndex(torch.eye(3), ["a", "b", "c"]))


def test_the_documents_record_and_code_work(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (CONFIG.parents[2] / "docs" / "vectors.md").read_text()
    (record,) = re.findall(r"```json\n(.*?)```", text, flags=re.DOTALL)
    value = json.loads(record)
    assert len(list(Record.from_json(value.pop("key"), json.dumps({"version": 1, **value})).parts)) == 4
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.setattr(Session, "from_pretrained", lambda directory: session)
    names: dict[str, Any] = {}
    exec(code.replace('"embed"', '"embed_animals"'), names)
    assert set(names["ranking"].items) == {"cat", "dog"}
