"""Records of several conversations: read apart, kept together in a pack."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from data.checks import problems_of
from data.inspection.contact_sheet import card
from data.packing import pack
from data.records import Message, Part, Record, RecordError, Target
from data.render import Rendered, RenderError, render, rendered_size
from data.shards import Sample
from data.stream.splitting import split_record
from layers.head import TERMS
from models.generalist import Generalist
from tests.tiny import MEDIA, raw_media, sample, tiny_generalist


@pytest.fixture(scope="module")
def generalist(tmp_path_factory: pytest.TempPathFactory) -> Generalist:
    return tiny_generalist(tmp_path_factory.mktemp("tiny"))


def together() -> Record:
    """A question about an image, and two companions: the same question, and one about a graph."""
    box, text = sample("box")[0], sample("text")[0]
    graph = (Message("user", (Part("graph", media="first"), Part("text", text="what family?"))),)
    call = (Message("assistant", (Part("call", task="node_class", target="t1"),)),)
    targets = {"t0": Target("box", [4.0, 6, 20, 25]), "t1": Target("label", "xml")}
    media = {**box.media, "first": MEDIA["first"]}
    return replace(box, companions=(text.messages, graph + call), targets=targets, media=media)


def rendered_together(generalist: Generalist) -> Rendered:
    return render(together(), raw_media(), generalist.plan(), {**sample("box")[1], "t1": "xml"})


def test_records_keep_their_companions_as_json() -> None:
    record = together()
    again = Record.from_json(record.key, record.to_json())
    assert again.companions == record.companions and again.to_json() == record.to_json()
    assert "companions" not in json.loads(sample("box")[0].to_json())
    assert [part.type for part in record.parts] == ["image", "text", "call", "text", "text", "graph", "text", "call"]
    value = json.loads(record.to_json())
    value["companions"][0][0]["content"][0]["type"] = "picture"
    with pytest.raises(RecordError, match="part type: expected text, call or"):
        Record.from_json("a", json.dumps(value))
    value["companions"] = [[]]
    with pytest.raises(RecordError, match="companion: expected at least one message"):
        Record.from_json("a", json.dumps(value))


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("order", [1, -1], "a list of indices"),
        ("order", "3", "a list of indices"),
        ("pair", {"group": "a"}, "a group and a role"),
        ("pair", {"group": 1, "role": "query"}, "a group and a role"),
        ("pair", {"group": "a", "role": "friend"}, "a group and a role"),
    ],
)
def test_malformed_targets_are_refused(kind: str, value: object, expected: str) -> None:
    record = replace(sample("node")[0], targets={"t0": Target(kind, value)})
    with pytest.raises(RecordError, match=expected):
        Record.from_json(record.key, record.to_json())


def test_a_query_has_its_positive_in_its_record() -> None:
    turns = (Message("user", (Part("text", text="a"),)), Message("assistant", (Part("call", task="x", target="q"),)))
    query = {"q": Target("pair", {"group": "one", "role": "query"})}
    alone = replace(sample("text")[0], messages=turns, targets=query)
    with pytest.raises(RecordError, match=r"a call with a positive for every query, got \['one'\]"):
        Record.from_json("a", alone.to_json())
    other = (turns[0], Message("assistant", (Part("call", task="x", target="p"),)))
    both = {**query, "p": Target("pair", {"group": "one", "role": "positive"})}
    assert Record.from_json("a", replace(alone, companions=(other,), targets=both).to_json()).companions == (other,)


def test_companions_are_segments_of_the_pack(generalist: Generalist) -> None:
    plan, whole = generalist.plan(), rendered_together(generalist)
    alone = [render(replace(together(), messages=turns, companions=()), raw_media(), plan, {"t0": [4.0, 6, 20, 25]})
             for turns in together().conversations]  # fmt: skip
    assert [segment.input_ids for segment in whole.segments] == [item.input_ids for item in alone]
    assert rendered_size(together(), plan).tokens == whole.num_tokens == sum(item.num_tokens for item in alone)
    batch, apart = pack([whole], plan), pack(alone, plan)
    assert batch.segment_lengths == [len(item.input_ids) for item in alone]
    assert torch.equal(batch.position_ids, apart.position_ids) and torch.equal(batch.labels, apart.labels)
    assert batch.keys == ["box-0"] * 3 and batch.counts["node_class"] == batch.counts["boxes"] == 1
    assert batch.calls["node_class"][0].segment == 2 and batch.calls["node_class"][0].media == [("graph", 0)]


def test_companions_do_not_see_each_other(generalist: Generalist) -> None:
    plan = generalist.plan()
    first, other = rendered_together(generalist), rendered_together(generalist)
    other.input_ids = [
        token + 1 if label != -100 else token for token, label in zip(other.input_ids, other.labels, strict=True)
    ]

    def states(item: Rendered) -> torch.Tensor:
        batch = pack([item], plan)
        encoded = generalist.encode_media(batch.media)
        embeds = generalist.embed(batch.input_ids[0])
        for kind, media in encoded.items():
            embeds = generalist.place(embeds, batch.media[kind].positions, media.projected)
        return generalist.language_model(embeds[None], batch.position_ids, batch.segment_lengths)

    with torch.no_grad():
        one, two = states(first), states(other)
    length = len(first.input_ids)
    assert not torch.equal(one[:length], two[:length])
    torch.testing.assert_close(one[length:], two[length:])


def test_targets_say_how_many_terms_they_bring(generalist: Generalist) -> None:
    item = rendered_together(generalist)
    (call,) = item.companions[1].calls
    call.target = {**call.target, TERMS: torch.tensor(0)}
    assert pack([item], generalist.plan()).counts == {
        "boxes": 1,
        "token": pack([item], generalist.plan()).counts["token"],
    }


def test_companions_are_never_parted(generalist: Generalist) -> None:
    with pytest.raises(RenderError, match="got one with companions"):
        split_record(together(), generalist.plan(), 20)


def test_companions_are_checked_and_shown() -> None:
    text = sample("text")[0]
    lost = Part("call", task="seg", groundings=({"type": "node", "index": 0},))
    wrong = replace(text, companions=((text.messages[0], Message("assistant", (lost,))),))
    assert problems_of(Sample("a", text, {})) == []
    assert problems_of(Sample("a", wrong, {})) == ["call of 'seg': node: expected a graph before it, got none"]
    page = card(Sample("a", replace(text, companions=(text.messages,)), {}))
    assert page.count("hello hello") == 2 and "read apart" in page
