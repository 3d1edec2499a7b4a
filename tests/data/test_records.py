from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError

from data.commands.schema import record_schema
from data.records import Record, RecordError
from tests.data.conftest import audio_sample, graph_sample, image_sample, text_record

RECORDS = [text_record("text-0"), image_sample("image-0")[0], audio_sample("audio-0")[0], graph_sample("graph-0")[0]]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.key)
def test_json_round_trip_is_exact_and_stable(record: Record) -> None:
    again = Record.from_json(record.key, record.to_json())
    assert again == record
    assert again.to_json() == record.to_json()


def _changed(path: list[Any], value: Any) -> bytes:
    record = json.loads(image_sample("image-0")[0].to_json())
    place = record
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(record).encode()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["colour"], "red", "fields.*colour"),
        (["version"], 7, "version: expected 1, got 7"),
        (["split"], "dev", "split.*dev"),
        (["media", "scene", "file"], "../../etc/passwd", "media 'scene' file"),
        (["media", "scene", "file"], "other/scene.png", "media 'scene' file"),
        (["media", "scene", "file"], "pipe:cat x", "media 'scene' file"),
        (["media", "scene", "size"], [40], r"media 'scene' size.*\(width, height\).*40"),
        (["media", "scene", "size"], [0, 4], "media 'scene' size"),
        (["media", "scene", "type"], "smell", "media 'scene' type.*smell"),
        (["targets", "box", "value"], [9, 0, 3, 4], "target 'box' value.*x1 < x2"),
        (["messages", 0, "content", 0, "media"], "scenery", "image part.*scenery"),
        (["messages", 1, "content", 1, "target"], "boxes", "call target.*boxes"),
        (["messages", 1, "role"], "user", "call part: expected an assistant message, got 'user'"),
        (["messages", 0, "role"], "robot", "role.*robot"),
        (["messages"], [], "messages"),
        (["messages"], 3, "messages: expected a list, got 3"),
        (["messages", 0, "content"], "hello", "content: expected a list of parts"),
        (["messages", 1, "content", 1, "task"], None, "call task: expected a string"),
        (["messages", 1, "content", 1, "prompt"], 3, "call prompt: expected a string"),
        (["messages", 1, "content", 1, "groundings"], {"type": "region"}, "groundings: expected a list"),
        (["messages", 1, "content", 1, "groundings", 0, "type"], "smell", "grounding type: expected one of"),
        (["media", "scene", "size"], [True, 4], "media 'scene' size"),
        (["media", "scene", "sample_rate"], "fast", "media 'scene' sample_rate: expected a positive integer"),
        (["targets", "box", "value"], [0, 0, float("nan"), 4], "expected finite numbers, got NaN"),
        (["meta"], [], "meta: expected a JSON object"),
        (["media"], [1], "malformed"),
    ],
)
def test_a_bad_record_is_named_with_expected_and_given(path: list[Any], value: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message) as caught:
        Record.from_json("image-0", _changed(path, value))
    assert "image-0" in str(caught.value)


_MASK = {"size": [24, 40], "counts": [960]}


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("boxes", [], None),
        ("boxes", [{"box_xyxy": [0, 1, 2, 3], "label": "red 7"}, {"box_xyxy": [0.5, 1, 2, 3]}], None),
        ("boxes", [{"box_xyxy": [5, 1, 2, 3]}], "target 'box' value, box_xyxy: expected .*x1 < x2"),
        ("boxes", [{"box_xyxy": [0, 1, 2, 3], "score": 1}], "expected a list of {'box_xyxy'.*score"),
        ("boxes", [0, 1, 2, 3], "expected a list of {'box_xyxy'"),
        ("boxes", {"box_xyxy": [0, 1, 2, 3]}, "expected a list of {'box_xyxy'"),
        ("masks", [{"mask": _MASK, "label": "red 7"}, {"mask": _MASK}], None),
        ("masks", [{"mask": _MASK, "label": 7}], "expected a list of {'mask'.*label"),
        ("masks", [_MASK], "expected a list of {'mask'"),
    ],
)
def test_targets_of_several_boxes_and_masks(kind: str, value: Any, message: str | None) -> None:
    record = json.loads(_changed(["targets", "box"], {"type": kind, "value": value}))
    validator = Draft202012Validator(record_schema())
    assert validator.is_valid(record) == (message is None or "x1 < x2" in message)  # a schema cannot compare numbers
    if message is None:
        assert Record.from_json("a", json.dumps(record)).targets["box"].value == value
    else:
        with pytest.raises(RecordError, match=message):
            Record.from_json("a", json.dumps(record))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000, b"\xed\xa0\x80"])
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    with pytest.raises(RecordError, match="record 'a'"):
        Record.from_json("a", data)


def test_half_of_a_surrogate_pair_is_no_text() -> None:
    data = text_record("a", question="How many?").to_json()
    whole = data.replace(b"How many?", rb"\ud83d\ude00")
    assert Record.from_json("a", whole).messages[0].content[0].text == "\N{GRINNING FACE}"
    with pytest.raises(RecordError, match="surrogates not allowed"):
        Record.from_json("a", data.replace(b"How many?", rb"\uD83D alone"))


def test_long_texts_stay_whole() -> None:
    record = text_record("a", question="ä" * 5_000_000)
    assert Record.from_json("a", record.to_json()) == record


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, item in items for place in _places(item, (*path, name)))]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_the_parser_takes_a_record_or_says_why_not(data: st.DataObject) -> None:
    """Whatever stands anywhere in a record, it is a record that survives a round trip, or one clear error."""
    value = json.loads(data.draw(st.sampled_from(RECORDS)).to_json())
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(_places(value)[1:]))
        place = value
        for step in path:
            place = place[step]
        if isinstance(place, dict) and data.draw(st.booleans()):
            del place[last]
        else:
            place[last] = data.draw(_JSON)
    try:
        record = Record.from_json("a", json.dumps(value))
    except RecordError as error:
        assert "record 'a'" in str(error)
    else:
        assert Record.from_json("a", record.to_json()) == record


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.key)
def test_the_schema_describes_records(record: Record) -> None:
    validator = Draft202012Validator(record_schema())
    validator.validate(json.loads(record.to_json()))
    for path, wrong in ((["split"], "dev"), (["messages"], []), (["colour"], "red")):
        with pytest.raises(ValidationError):
            validator.validate(json.loads(_changed(path, wrong)))


def test_the_schema_in_the_documents_is_this_one() -> None:
    written = (Path(__file__).parents[2] / "docs" / "record.schema.json").read_text()
    assert json.loads(written) == record_schema(), "run: python -m data schema > docs/record.schema.json"


@pytest.mark.parametrize("key", ["A", "a.b", "a/b", "", "ä", "a\n"])
def test_keys_are_plain(key: str) -> None:
    with pytest.raises(RecordError, match="key"):
        Record.from_json(key, text_record("a").to_json())
