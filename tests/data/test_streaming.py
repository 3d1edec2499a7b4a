"""Shards that are read front to back: what is shared, resumed, mixed and left out."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from data.datamodule import PackedDataModule
from data.mixtures import Mixture, Source
from data.shards import ShardWriter, expand
from models.plan import BatchPlan
from tests.data.conftest import audio_sample, text_record


def _keys(steps: Any, count: int) -> list[list[list[str]]]:
    return [[batch.keys for batch in step.packs] for step in islice(iter(steps), count)]


def _stream(shards: Path, plan: BatchPlan, **changes: Any) -> PackedDataModule:
    arguments = {"max_tokens": 256, "packs_per_step": 2, "seed": 3, "reading": "streaming", "shuffle_buffer": 8}
    return PackedDataModule([Source(str(shards))], plan=plan, **{**arguments, **changes})


def _samples(steps: Any, count: int) -> list[str]:
    return [key for step in _keys(steps, count) for pack in step for key in pack]


def test_streaming_writes_nothing_and_reads_everything(shards: Path, plan: BatchPlan) -> None:
    seen = Counter(_samples(_stream(shards, plan).train_dataloader(), 60))
    assert len(seen) == 60 and max(seen.values()) - min(seen.values()) <= 2
    assert not list(shards.glob("*.idx"))
    other = _samples(_stream(shards, plan, seed=4).train_dataloader(), 60)
    assert other != _samples(_stream(shards, plan).train_dataloader(), 60)


def test_streaming_workers_and_processes_share_the_samples(
    shards: Path, plan: BatchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = []
    for rank in range(2):
        module = _stream(shards, plan, num_workers=2)
        monkeypatch.setattr(module, "_ranks", lambda rank=rank: (rank, 2))
        parts.append(Counter(_samples(module.train_dataloader(), 80)))
    assert not set(parts[0]) & set(parts[1]) and len(parts[0] | parts[1]) == 60


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("mixture", [Mixture(), Mixture(unmixed=True)])
def test_a_stream_is_resumed_with_the_same_workers_only(
    shards: Path, plan: BatchPlan, workers: int, mixture: Mixture
) -> None:
    settings = {"num_workers": workers, "mixture": mixture}
    whole = _keys(_stream(shards, plan, **settings).train_dataloader(), 25)
    interrupted = _stream(shards, plan, **settings)
    _keys(interrupted.train_dataloader(), 11)
    state = json.loads(json.dumps(interrupted.state_dict()))
    resumed = _stream(shards, plan, **settings)
    resumed.load_state_dict(state)
    assert _keys(resumed.train_dataloader(), 14) == whole[11:]
    with pytest.raises(ValueError, match=r"cannot be continued: workers: expected \d, got 4"):
        _stream(shards, plan, num_workers=4, mixture=mixture).load_state_dict(state)


def test_streamed_sources_by_their_weights(tmp_path: Path, plan: BatchPlan) -> None:
    for name in ("a", "b"):
        with ShardWriter(tmp_path / name, name) as writer:
            for number in range(30):
                writer.write(text_record(f"{name}-{number}"), {})
    sources = [Source(str(tmp_path / "a"), weight=3.0, name="a"), Source(str(tmp_path / "b"), weight=1.0, name="b")]
    settings: dict[str, Any] = {"max_tokens": 256, "plan": plan, "reading": "streaming", "shuffle_buffer": 4}
    mixed = PackedDataModule(sources, **settings)
    seen = Counter(key[0] for key in _samples(mixed.train_dataloader(), 60))
    assert seen["a"] / seen["b"] == pytest.approx(3, rel=0.25)
    unmixed = PackedDataModule(sources, Mixture(unmixed=True), **settings)
    steps = list(islice(unmixed.train_dataloader(), 60))
    assert {step.source for step in steps} == {"a", "b"}
    for step in steps:
        assert {key[0] for batch in step.packs for key in batch.keys} == {step.source}
        assert step.probability == {"a": 0.75, "b": 0.25}[str(step.source)]
    with pytest.raises(ValueError, match=r"expected a mixture of weights.*got \['temperature', 'epochs'\]"):
        PackedDataModule(sources, Mixture(temperature=2, epochs=1), **settings).train_dataloader()


def test_a_stream_leaves_bad_samples_out(shards: Path, plan: BatchPlan, tmp_path: Path) -> None:
    path = Path(expand(shards)[1])
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with ShardWriter(shards, "zzz") as writer:
        writer.write(audio_sample("audio-empty")[0], {"clip.flac": b""})
        writer.write(text_record("longer", question="How many? " * 300), {})
    log = tmp_path / "quarantine.jsonl"
    module = _stream(shards, plan, oversize="quarantine", quarantine=str(log))
    assert len(set(_samples(module.train_dataloader(), 60))) > 40
    reasons = {entry["key"]: entry["reason"] for entry in map(json.loads, log.read_text().splitlines())}
    assert "cut short" in reasons[""] and "at most max_tokens=256" in reasons["longer"] and "audio-empty" in reasons
    with pytest.raises(ValueError, match=r"raise data.init_args.max_tokens, or set data.init_args.oversize to"):
        _samples(_stream(shards, plan).train_dataloader(), 60)
