"""What cannot be used: bad samples, oversize samples, and how many of them a run takes."""

from __future__ import annotations

import json
import os
import re
import signal
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from data.datamodule import PackedDataModule
from data.mixtures import PackSchedule, Source
from data.packing import merge_counts
from data.quarantine import BadSample, Quarantine, QuarantineError
from data.records import Message
from data.render import IGNORED, Rendered
from data.shards import ShardWriter
from data.stream import SampleSet, StepDataset
from data.stream.splitting import split_record
from data.stream.whereabouts import places_of
from models.plan import BatchPlan
from tests.data.conftest import assistant, audio_sample, graph_sample, image_sample, text, text_record, user
from training.faults import explained


def _module(shards: Path, plan: BatchPlan, **changes: Any) -> PackedDataModule:
    arguments = {"max_tokens": 256, "packs_per_step": 2, "seed": 3, "cache": True, **changes}
    return PackedDataModule([Source(str(shards))], plan=plan, **arguments)


def _keys(steps: Any, count: int) -> list[list[list[str]]]:
    return [[batch.keys for batch in step.packs] for step in islice(iter(steps), count)]


@pytest.fixture
def bad_shards(tmp_path: Path) -> Path:
    """50 samples: an image that does not decode, an empty clip, an edge to nowhere, a wrong size, no such task."""
    with ShardWriter(tmp_path / "bad", "mixed", max_samples=30) as writer:
        for number in range(45):
            writer.write(text_record(f"text-{number}"), {})
        record, members = image_sample("image-bad")
        writer.write(record, {"scene.png": members["scene.png"][:70]})
        writer.write(image_sample("image-size")[0], image_sample("x", (30, 30))[1])
        writer.write(audio_sample("audio-empty")[0], {"clip.flac": b""})
        record, members = graph_sample("graph-bad", nodes=5)
        writer.write(record, {"g.json": members["g.json"].replace(b"[0,1,4]", b"[0,1,9]")})
        record, members = image_sample("image-task")
        writer.write(record, members)
    path = tmp_path / "bad" / "mixed-000001.tar"
    head, tail = path.read_bytes().rsplit(b'"task":"ground"', 1)
    path.write_bytes(head + b'"task":"grouns"' + tail)
    return tmp_path / "bad"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_are_left_out_and_written_down(
    bad_shards: Path, plan: BatchPlan, tmp_path: Path, num_workers: int
) -> None:
    log = tmp_path / "logs" / "quarantine.jsonl"
    module = _module(bad_shards, plan, quarantine=str(log), max_quarantined=0.1, num_workers=num_workers)
    steps = list(islice(module.train_dataloader(), 12))
    keys = Counter(key for step in steps for batch in step.packs for key in batch.keys)
    assert set(keys) == {f"text-{number}" for number in range(45)}
    entries = {entry["key"]: entry for entry in map(json.loads, log.read_text().splitlines())}
    assert {key: entry["reason"] for key, entry in entries.items()}.keys() == {
        "image-bad",
        "image-size",
        "audio-empty",
        "graph-bad",
        "image-task",
    }
    assert "(40, 24), got (30, 30)" in entries["image-size"]["reason"]
    assert "unknown task 'grouns'" in entries["image-task"]["reason"]
    assert "expected nodes 0 to 4, got [9]" in entries["graph-bad"]["reason"]
    assert all(entry["shard"].endswith("mixed-000001.tar") for entry in entries.values())
    assert sum(step.quarantined for step in steps) >= 4
    assert all(step.counts == merge_counts(step.packs) for step in steps)
    lines = log.read_text().count("\n")
    list(islice(_module(bad_shards, plan, quarantine=str(log), max_quarantined=0.1).train_dataloader(), 12))
    assert log.read_text().count("\n") == lines == 5


def test_too_many_bad_samples_end_the_run(bad_shards: Path, plan: BatchPlan) -> None:
    with pytest.raises(QuarantineError, match=r"at most 5.0% of 50 samples to be bad, got [345]"):
        list(islice(_module(bad_shards, plan).train_dataloader(), 12))


def test_a_step_is_never_without_a_pack(tmp_path: Path, plan: BatchPlan) -> None:
    with ShardWriter(tmp_path, "x") as writer:
        writer.write(audio_sample("audio-empty")[0], {"clip.flac": b""})
        writer.write(text_record("text-0"), {})
    samples = SampleSet([Source(str(tmp_path))], plan, 64)
    dataset = StepDataset(samples, PackSchedule(samples.source_of, samples.lengths, [Source("x")], 64, 0), 1)
    steps = [dataset[number] for number in range(6)]
    assert all([batch.keys for batch in step.packs] == [["text-0"]] for step, _ in steps)
    assert {bad.key for _, found in steps for bad in found} == {"audio-empty"}


def _at(monkeypatch: pytest.MonkeyPatch, key: str, action: Callable[[], None]) -> None:
    """Have something happen where a sample is made ready."""
    rendered = SampleSet.rendered

    def changed(self: SampleSet, number: int) -> Rendered:
        if self.sample(number).key == key:
            action()
        return rendered(self, number)

    monkeypatch.setattr(SampleSet, "rendered", changed)


def test_a_worker_that_dies_is_told_with_its_sample(
    shards: Path, plan: BatchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    _at(monkeypatch, "image-3", lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RuntimeError, match="DataLoader worker") as caught:
        list(islice(_module(shards, plan, num_workers=1, cache=False).train_dataloader(), 40))
    (place,) = places_of(caught.value)
    assert re.fullmatch(r"sample 'image-3' of .*mixed-00000\d\.tar", place)
    assert f", at {place}; if it was killed" in str(explained(caught.value))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_that_is_no_samples_fault_says_where(
    shards: Path, plan: BatchPlan, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    def fail() -> None:
        raise KeyError("a fault in a processor")

    _at(monkeypatch, "audio-7", fail)
    with pytest.raises(KeyError) as caught:
        list(islice(_module(shards, plan, num_workers=num_workers, cache=False).train_dataloader(), 40))
    told = "".join(traceback.format_exception(caught.value))
    assert re.search(r"while sample 'audio-7' of .*mixed-00000\d\.tar was made ready", told)


def test_quarantine_counts_a_sample_once() -> None:
    quarantine = Quarantine(None, 40, 0.05)
    first, second = BadSample("a.tar", "x", "why"), BadSample("a.tar", "y", "why")
    quarantine.add([first, first])
    quarantine.add([first, second])
    assert quarantine.bad == [first, second]
    with pytest.raises(QuarantineError, match="got 3"):
        quarantine.add([BadSample("b.tar", "x", "why")])


def test_oversize_samples(shards: Path, plan: BatchPlan) -> None:
    with pytest.raises(ValueError, match=r"max_tokens=40, got \d+ tokens; raise data.init_args.max_tokens"):
        _module(shards, plan, max_tokens=40).train_dataloader()
    module = _module(shards, plan, max_tokens=40, oversize="quarantine", max_quarantined=0.9)
    assert _keys(module.train_dataloader(), 3)
    assert all(bad.reason for bad in module.train_samples().bad)


def test_oversize_dialogues_are_split_between_their_turns(tmp_path: Path, plan: BatchPlan) -> None:
    record, members = image_sample("image-0")
    asked = tuple(
        message
        for number in range(6)
        for message in (user(text(f"And {number}?")), assistant(text(f"{number} it is.")))
    )
    longer = replace(record, messages=(Message("system", (text("Be brief."),)), *record.messages, *asked))
    with ShardWriter(tmp_path, "x") as writer:
        writer.write(longer, members)
    whole = SampleSet([Source(str(tmp_path))], plan, 4096).rendered(0)
    limit = len(whole.input_ids) // 2
    samples = SampleSet([Source(str(tmp_path))], plan, limit, "split")
    parts = [samples.rendered(number) for number in range(len(samples))]
    assert len(parts) >= 2 and all(len(part.input_ids) <= limit for part in parts) and not samples.bad
    assert [len(part.input_ids) for part in parts] == samples.lengths.tolist()
    assert all([item.name for item in part.media] == ["scene"] for part in parts)  # shown again

    def learned(rendered: Rendered) -> list[int]:
        return [label for label in rendered.labels if label != IGNORED]

    assert [label for part in parts for label in learned(part)] == learned(whole)
    assert [call.call.task for part in parts for call in part.calls] == [call.call.task for call in whole.calls]
    assert [bool(call.target) for part in parts for call in part.calls] == [bool(c.target) for c in whole.calls]
    with pytest.raises(ValueError, match=r"expected exchanges of at most max_tokens=20, got one of \d+ tokens"):
        split_record(longer, plan, 20)
    hopeless = SampleSet([Source(str(tmp_path))], plan, 20, "split")
    assert len(hopeless) == 0 and "exchange 1 of" in hopeless.bad[0].reason
