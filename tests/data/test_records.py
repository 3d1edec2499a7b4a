from __future__ import annotations

import json
from typing import Any

import pytest

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
        (["messages"], 3, "malformed"),
    ],
)
def test_a_bad_record_is_named_with_expected_and_given(path: list[Any], value: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message) as caught:
        Record.from_json("image-0", _changed(path, value))
    assert "image-0" in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    with pytest.raises(RecordError, match="record 'a'"):
        Record.from_json("a", data)


@pytest.mark.parametrize("key", ["A", "a.b", "a/b", "", "ä", "a\n"])
def test_keys_are_plain(key: str) -> None:
    with pytest.raises(RecordError, match="key"):
        Record.from_json(key, text_record("a").to_json())
