from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import headers
from data import index as indexing
from data.__main__ import main as data_main
from data.index import (
    ShardReader,
    StaleIndexError,
    build_index,
    ensure_index,
    ensure_lengths,
    fingerprint,
    index_path,
    lengths_path,
    load_index,
    load_lengths,
    verify_index,
)
from data.mixtures import Source
from data.records import RecordError
from data.shards import ShardWriter, expand, read_samples
from data.sidecars import CACHE_VARIABLE
from data.stream import SampleSet
from models.plan import BatchPlan
from tests.data.conftest import audio_sample, damaged, image_sample, text_record


def test_random_access_equals_reading_in_order(shards: Path) -> None:
    indices = [ensure_index(path) for path in expand(shards)]
    samples = list(read_samples(shards))
    places = [(index, position) for index in indices for position in range(len(index))]
    assert [index.entries[position].task for index, position in places] == [sample.record.task for sample in samples]
    reader = ShardReader()
    for number in reversed(range(len(samples))):
        assert reader.read(*places[number]) == samples[number]
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.read(*places[7]) == samples[7]
    compact = [(index.compact(), position) for index, position in places]
    assert [reader.read(*place) for place in compact] == samples


def test_compact_entries_are_the_same_entries_without_tasks_and_meta(shards: Path) -> None:
    index = ensure_index(expand(shards)[0])
    plain = [replace(entry, task="", meta={}) for entry in index.entries]
    compact = index.compact().entries
    assert list(compact) == plain and len(compact) == len(plain) and compact[-1] == plain[-1]
    assert compact[3:7] == plain[3:7] and pickle.loads(pickle.dumps(compact))[2] == plain[2]
    with pytest.raises(IndexError):
        compact[len(plain)]
    assert not list(replace(index, entries=()).compact().entries)


def test_a_sidecar_is_read_back_and_ignores_time_stamps(shards: Path) -> None:
    path = expand(shards)[0]
    index = ensure_index(path)
    os.utime(path, (1, 1))
    assert load_index(path) == index == build_index(path)


def test_a_stale_index_is_refused_and_remade(shards: Path, tmp_path: Path) -> None:
    path = expand(shards)[0]
    ensure_index(path)
    with ShardWriter(tmp_path / "other", "mixed", 100) as writer:
        for number in range(20):
            writer.write(text_record(f"other-{number}"), {})
    Path(path).write_bytes(writer.paths[0].read_bytes())
    with pytest.raises(StaleIndexError, match=r"mixed-000000\.tar\.idx: expected a sidecar of"):
        load_index(path)
    with pytest.warns(UserWarning, match="making it anew"):
        index = ensure_index(path)
    assert [entry.key for entry in index.entries] == [f"other-{number}" for number in range(20)]
    assert load_index(path) == index


def test_the_checksum_finds_what_the_fingerprint_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ShardWriter(tmp_path, "long", 1000) as writer:
        for number in range(200):
            writer.write(text_record(f"long-{number}"), {})
    path = writer.paths[0]
    index = ensure_index(str(path))
    assert index.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    verify_index(index)
    assert data_main(["index", "--verify", str(path)]) == 0
    data = bytearray(path.read_bytes())
    for offset, _ in (entry.members["json"] for entry in index.entries):
        changed = data.copy()
        changed[offset + 5] ^= 1
        path.write_bytes(changed)
        if fingerprint(str(path)) == index.fingerprint:
            break
    with pytest.raises(StaleIndexError, match="expected the bytes with SHA-256"):
        verify_index(load_index(str(path)))
    assert data_main(["index", str(path)]) == 0
    assert data_main(["index", "--verify", str(path)]) == 1
    assert "SHA-256" in capsys.readouterr().err


def test_a_shard_that_changed_after_indexing_is_noticed_on_reading(shards: Path) -> None:
    path = Path(expand(shards)[0])
    index = ensure_index(str(path))
    entry = index.entries[3]
    offset = entry.members["json"][0]
    data = bytearray(path.read_bytes())
    data[offset - 512 : offset - 508] = b"zzzz"
    path.write_bytes(data)
    with pytest.raises(StaleIndexError, match=f"expected '{entry.key}.json'"):
        ShardReader().read(index, 3)


@pytest.mark.parametrize("content", [b"", b'{"version"', b'{"version": 99}'])
def test_a_damaged_sidecar_is_refused(shards: Path, content: bytes) -> None:
    path = expand(shards)[0]
    Path(index_path(path)).write_bytes(content)
    with pytest.raises(StaleIndexError, match="idx"):
        load_index(path)


@pytest.mark.parametrize("content", [b"[]", b"SQLite format 3\0...", b"TIDX\0\0"])
def test_an_index_of_another_program_is_left_alone(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    path = expand(shards)[0]
    foreign = Path(index_path(path))
    foreign.write_bytes(content)
    with pytest.warns(UserWarning, match="belongs to another program"):
        index = ensure_index(path)
    assert load_index(path) == index == build_index(path)
    assert foreign.read_bytes() == content
    assert [item.parent.name for item in (tmp_path / "cache").rglob("*.idx")] == ["sidecars"]


def test_a_cut_shard_costs_what_lies_behind_the_cut(shards: Path) -> None:
    path = Path(expand(shards)[0])
    whole = ensure_index(str(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match="making it anew"):
        index = ensure_index(str(path))
    good = [
        entry for entry in index.entries if set(entry.members) == set(whole.entries[index.entries.index(entry)].members)
    ]
    assert 0 < len(good) < len(whole) and index.entries[: len(good)] == whole.entries[: len(good)]
    assert "cut short" in dict(index.problems)[""]
    told = {entry.key for entry in index.entries} | {key for key, _ in index.problems if key}
    assert told == {entry.key for entry in whole.entries}
    assert load_index(str(path)) == index


def test_a_record_nested_too_deeply_costs_itself_alone(tmp_path: Path, plan: BatchPlan) -> None:
    path = tmp_path / "x.tar"
    deep, good = b"[" * 100_000, text_record("b").to_json()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (("a.json", deep), ("b.json", good)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    samples = SampleSet([Source(str(path))], plan, 4096, "quarantine")
    assert samples.rendered(0).key == "b" and len(samples) == 1
    assert [bad.key for bad in samples.bad] == ["a"] and "nested" in samples.bad[0].reason


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_cut_off_nothing_is_lost_in_silence(shards: Path, plan: BatchPlan, data: st.DataObject) -> None:
    path = Path(expand(shards)[0])
    content, whole = path.read_bytes(), build_index(str(path))
    sidecar = Path(index_path(str(path)))
    try:
        ensure_index(str(path))
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            samples = SampleSet([Source(str(path))], plan, 4096, "quarantine")
        valid = {samples.rendered(number).key for number in range(len(samples))}
        quarantined = {bad.key for bad in samples.bad} - {""}
        assert not valid & quarantined
        written = {entry.key for entry in whole.entries}
        missing_end = {bad.reason for bad in samples.bad if not bad.key}
        assert valid | quarantined == written and (valid == written or missing_end)
        errors: list[str] = []
        read = {sample.key for sample in read_samples(str(path), lambda _, __, error: errors.append(str(error)))}
        assert valid == read and (errors or valid == written)  # front to back as well, and not without a word
    finally:
        path.write_bytes(content)
        sidecar.unlink(missing_ok=True)


def test_headers_alone_tell_what_reading_tells(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = expand(shards)
    for window in (2**23, 700):  # 700: headers and records lie across its borders
        monkeypatch.setattr(headers, "_WINDOW", window)
        quick = [build_index(path) for path in paths]
        with monkeypatch.context() as patch:
            patch.setattr(indexing, "scan_headers", lambda *_: None)
            assert quick == [build_index(path) for path in paths]
    monkeypatch.setattr(indexing, "read_groups", None)  # not asked
    assert [build_index(path) for path in paths] == quick


_DAMAGE = st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=12)), min_size=1, max_size=3)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=_DAMAGE, in_headers=st.booleans(), cut=st.integers(0, 2**20) | st.none())
def test_headers_alone_never_hide_damage(
    shards: Path, monkeypatch: pytest.MonkeyPatch, damage: list[tuple[int, bytes]], in_headers: bool, cut: int | None
) -> None:
    path = Path(expand(shards)[0])
    content = path.read_bytes()
    starts = [offset - 512 for entry in build_index(str(path)).entries for offset, _ in entry.members.values()]
    changed = bytearray(content)
    for place, put in damage:
        at = starts[place % len(starts)] + place % 512 if in_headers else place % len(content)
        changed[at : at + len(put)] = put
    try:
        path.write_bytes(changed[:cut])
        quick = build_index(str(path))
        with monkeypatch.context() as patch:
            patch.setattr(indexing, "scan_headers", lambda *_: None)
            assert quick == build_index(str(path))
    finally:
        path.write_bytes(content)


def test_lengths_belong_to_one_plan(shards: Path, plan: BatchPlan) -> None:
    index = ensure_index(expand(shards)[0])
    lengths = ensure_lengths(index, plan, ShardReader())
    assert load_lengths(index, plan.hash) == lengths and not lengths.errors and min(lengths.tokens) > 0
    coarse = replace(plan, token_rules={**plan.token_rules, "image": plan.token_rules["audio"]})
    assert coarse.hash != plan.hash
    other = ensure_lengths(index, coarse, ShardReader())
    assert other.tokens != lengths.tokens
    Path(lengths_path(index.path, coarse.hash)).write_bytes(Path(lengths_path(index.path, plan.hash)).read_bytes())
    with pytest.raises(StaleIndexError, match=plan.hash):
        load_lengths(index, coarse.hash)
    with pytest.warns(UserWarning, match="making it anew"):
        assert ensure_lengths(index, coarse, ShardReader()) == other


def test_bad_records_are_indexed_and_told(tmp_path: Path, plan: BatchPlan) -> None:
    record, members = image_sample("image-0")
    unknown = damaged(record, messages=(record.messages[0], *audio_sample("x")[0].messages[1:]), key="image-1")
    call = replace(record.messages[1].content[1], task="nonsense")
    unknown = damaged(unknown, messages=(record.messages[0], replace(record.messages[1], content=(call,))))
    with ShardWriter(tmp_path, "x") as writer:
        writer.write(record, members)
        writer.write(unknown, members)
        writer.write(text_record("text-0"), {})
    path = writer.paths[0]
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"split":"train","targets":{}', b'"split":"tra\xfen","targets":{}'))
    index = ensure_index(str(path))
    lengths = ensure_lengths(index, plan, ShardReader())
    assert [tokens > 0 for tokens in lengths.tokens] == [True, False, False]
    assert "unknown task 'nonsense'" in lengths.errors[1] and "text-0" in lengths.errors[2]
    with pytest.raises(RecordError, match="text-0"):
        ShardReader().read(index, 2)
    assert json.loads(Path(lengths_path(str(path), plan.hash)).read_text())["plan"] == plan.hash
