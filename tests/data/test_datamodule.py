from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from data.datamodule import PackedDataModule
from data.mixtures import Mixture, PackSchedule, Source
from data.packing import merge_counts
from data.shards import ShardWriter, expand
from data.stream import Parcel, SampleSet, Slots, StepDataset, loading
from data.stream.parcels import MOST_LENT
from layers.batch import PADDING, Batch, HeadCall, MediaBatch, Step
from models.plan import BatchPlan
from tests.data.conftest import text_record


def _module(shards: Path, plan: BatchPlan, **changes: Any) -> PackedDataModule:
    arguments = {"max_tokens": 256, "packs_per_step": 2, "seed": 3, "cache": True, **changes}
    return PackedDataModule([Source(str(shards))], plan=plan, **arguments)


def _keys(steps: Any, count: int) -> list[list[list[str]]]:
    return [[batch.keys for batch in step.packs] for step in islice(iter(steps), count)]


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_equal(first[name], second[name]) for name in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(_equal, first, second))
    if hasattr(first, "__dict__") and not hasattr(first, "grid"):
        return _equal(vars(first), vars(second))
    return bool(first == second)


def test_a_step_carries_the_counts_of_its_packs(shards: Path, plan: BatchPlan) -> None:
    for step in islice(_module(shards, plan).train_dataloader(), 8):
        assert len(step.packs) == 2 and step.counts == merge_counts(step.packs)
        assert all(batch.input_ids.shape[1] <= 256 for batch in step.packs)


def test_static_shapes_fill_every_pack_and_change_nothing_else(shards: Path, plan: BatchPlan) -> None:
    plain, static = (_module(shards, plan, static_shapes=static).train_dataloader() for static in (False, True))
    for one, other in zip(islice(plain, 8), islice(static, 8), strict=True):
        assert one.counts == other.counts
        for pack, full in zip(one.packs, other.packs, strict=True):
            used = pack.input_ids.shape[1]
            assert full.input_ids.shape[1] == sum(full.segment_lengths) == 256
            assert torch.equal(pack.input_ids, full.input_ids[:, :used]) and full.keys[: len(pack.keys)] == pack.keys
            assert (full.labels[:, used:] == -100).all() and set(full.keys[len(pack.keys) :]) <= {PADDING}


def test_a_round_takes_every_sample_once_and_rounds_differ(shards: Path, plan: BatchPlan) -> None:
    samples = SampleSet([Source(str(shards))], plan, 256)
    schedule = PackSchedule(samples.source_of, samples.lengths, [Source("x")], 256, 0)
    packs = iter(range(10_000))
    rounds = []
    for _ in range(3):
        seen: list[int] = []
        while len(seen) < len(samples):
            seen += schedule.pack(next(packs)).samples
        assert sorted(seen) == list(range(60))
        rounds.append(seen)
    assert rounds[0] != rounds[1] != rounds[2]
    backwards = PackSchedule(samples.source_of, samples.lengths, [Source("x")], 256, 0)
    assert [backwards.pack(n) for n in (25, 3, 17)] == [schedule.pack(n) for n in (25, 3, 17)]
    assert PackSchedule(samples.source_of, samples.lengths, [Source("x")], 256, 1).pack(0) != schedule.pack(0)


def test_weights_are_passes_per_round() -> None:
    source_of, lengths = np.repeat([0, 1, 2], [10, 20, 8]), np.full(38, 5)
    schedule = PackSchedule(source_of, lengths, [Source("x", weight=w) for w in (2.0, 0.5, 1.0)], 20, 0)
    first = Counter(number for pack in range(10) for number in schedule.pack(pack).samples)  # 20 + 10 + 8 samples by 4
    by_source = [sum(count for number, count in first.items() if source_of[number] == s) for s in range(3)]
    assert by_source == [20, 10, 8]
    assert [first[number] for number in range(10)] == [2] * 10
    second = Counter(number for pack in range(10, 20) for number in schedule.pack(pack).samples)
    assert [first[number] + second[number] for number in range(10, 30)] == [1] * 20


def test_workers_change_nothing(shards: Path, plan: BatchPlan) -> None:
    alone = list(islice(_module(shards, plan).train_dataloader(), 6))
    helped = list(islice(_module(shards, plan, num_workers=2, cache=False).train_dataloader(), 6))
    assert _equal(alone, helped)


def test_a_parcel_returns_the_step_bit_for_bit(shards: Path, plan: BatchPlan) -> None:
    (step,) = islice(_module(shards, plan, packs_per_step=4).train_dataloader(), 1)
    assert {"image", "audio", "graph"} <= {kind for batch in step.packs for kind in batch.media}
    parcel = Parcel(step, [])
    num_bytes = sum(tensor.numel() * tensor.itemsize for tensor in _tensors(step))
    assert parcel.buffer is not None and len(parcel.buffer) >= num_bytes
    again, _ = parcel.unpack()
    assert _equal(again, step)
    assert {tensor.untyped_storage().data_ptr() for tensor in _tensors(again) if tensor.numel()} == {
        parcel.buffer.untyped_storage().data_ptr()
    }
    assert Parcel(Step([], {}), []).unpack()[0] == Step([], {})


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24, dtype=torch.uint8).reshape(2, 4, 3).permute(2, 0, 1),  # as images are decoded
        torch.arange(24).reshape(4, 6)[:, 1::2],
        torch.ones(1).expand(3, 2),
        torch.empty(0, 2),
        torch.tensor(True),
        torch.zeros(3, 1, 2, dtype=torch.bfloat16).transpose(0, 2),
    ],
    ids=("permuted", "sliced", "expanded", "empty", "scalar", "transposed"),
)
def test_a_parcel_keeps_the_order_of_an_image_in_memory(tensor: torch.Tensor) -> None:
    pack = Batch(torch.ones(1, 3), tensor, torch.ones(1, 3), [3])
    again = Parcel(Step([pack], {}), []).unpack()[0].packs[0].labels
    assert again.dtype == tensor.dtype and torch.equal(again, tensor)
    strides = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda axis: -strides[axis])
    if tensor.permute(order).is_contiguous():  # nothing was moved within it
        assert again.permute(order).is_contiguous()


def test_a_parcel_goes_through_shared_memory_where_it_fits(shards: Path, plan: BatchPlan) -> None:
    (step,) = islice(_module(shards, plan, packs_per_step=4).train_dataloader(), 1)
    slots = Slots(3, 2**20)
    for _ in range(5):  # more often than there are blocks
        parcel = Parcel(step, [], slots)
        assert parcel.slot is not None and parcel.buffer is None
        assert _equal(parcel.unpack(slots)[0], step)
    tight = Slots(3, 64)
    assert _equal(Parcel(step, [], tight).unpack(tight)[0], step)
    assert Parcel(step, [], tight).slot is None


def test_steps_that_are_held_keep_their_content_and_no_worker_waiting(shards: Path, plan: BatchPlan) -> None:
    steps = list(islice(_module(shards, plan).train_dataloader(), 6))
    slots = Slots(MOST_LENT + 1, 2**20)
    held = [Parcel(step, [], slots).unpack(slots)[0] for step in steps]  # more of them than there are blocks
    assert _equal(held, steps)
    places = [{tensor.untyped_storage().data_ptr() for tensor in _tensors(step) if tensor.numel()} for step in held]
    assert all(len(place) == 1 for place in places) and len(set.union(*places)) == len(steps)
    one = held[0].packs[0].input_ids
    del held
    again = Parcel(steps[1], [], slots).unpack(slots)[0]
    assert torch.equal(one, steps[0].packs[0].input_ids) and _equal(again, steps[1])


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    inner = vars(value).values() if isinstance(value, Step | Batch | MediaBatch | HeadCall) else inner
    return [tensor for item in inner for tensor in _tensors(item)]


def test_steps_too_large_for_their_slot_arrive_whole(
    shards: Path, plan: BatchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = list(islice(_module(shards, plan).train_dataloader(), 9))
    monkeypatch.setattr(loading, "_slots", lambda *_: Slots(6, 4096))
    helped = list(islice(_module(shards, plan, num_workers=2).train_dataloader(), 9))
    assert _equal(alone, helped)


def test_resuming_continues_exactly(shards: Path, plan: BatchPlan) -> None:
    whole = _keys(_module(shards, plan).train_dataloader(), 30)
    interrupted = _module(shards, plan)
    assert _keys(interrupted.train_dataloader(), 11) == whole[:11]
    state = json.loads(json.dumps(interrupted.state_dict()))
    assert state["next_step"] == 11
    resumed = _module(shards, plan, num_workers=1)
    resumed.load_state_dict(state)
    assert _keys(resumed.train_dataloader(), 19) == whole[11:]


@pytest.mark.parametrize("changes", [{"seed": 4}, {"max_tokens": 300}, {"packs_per_step": 1}])
def test_another_order_is_not_continued(shards: Path, plan: BatchPlan, changes: dict[str, int]) -> None:
    state = _module(shards, plan).state_dict()
    (name,) = changes
    with pytest.raises(ValueError, match=f"cannot be continued: {name}: expected"):
        _module(shards, plan, **changes).load_state_dict(state)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_another_number_of_processes_repeats_and_skips_nothing(
    shards: Path, plan: BatchPlan, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _keys(_module(shards, plan, packs_per_step=6).train_dataloader(), 12)
    interrupted = _module(shards, plan, packs_per_step=6)
    _keys(interrupted.train_dataloader(), 5)
    state = json.loads(json.dumps(interrupted.state_dict()))
    parts = []
    for rank in range(ranks):
        resumed = _module(shards, plan, packs_per_step=6, num_workers=rank)
        monkeypatch.setattr(resumed, "_ranks", lambda rank=rank: (rank, ranks))
        resumed.load_state_dict(state)
        parts.append(_keys(resumed.train_dataloader(), 7))
    for step, expected in enumerate(whole[5:]):
        given = [parts[number % ranks][step][number // ranks] for number in range(6)]
        assert given == expected


def test_ranks_share_the_packs_of_a_step(shards: Path, plan: BatchPlan) -> None:
    samples = SampleSet([Source(str(shards))], plan, 256)
    schedule = PackSchedule(samples.source_of, samples.lengths, [Source("x")], 256, 0)
    whole = StepDataset(samples, schedule, 5)
    ranks = [StepDataset(samples, schedule, 5, rank, 2) for rank in range(2)]
    for number in (0, 7):
        step, parts = whole[number][0], [part[number][0] for part in ranks]
        assert [batch.keys for batch in step.packs][0::2] == [batch.keys for batch in parts[0].packs]
        assert [batch.keys for batch in step.packs][1::2] == [batch.keys for batch in parts[1].packs]
        assert step.counts == merge_counts([batch for part in parts for batch in part.packs])
        assert parts[0].counts != step.counts
    with pytest.raises(ValueError, match=r"at least one per process \(8\), got 5"):
        StepDataset(samples, schedule, 5, 0, 8)


def test_tasks_filter_a_source(shards: Path, plan: BatchPlan) -> None:
    module = PackedDataModule([Source([str(shards)], tasks=["asr", "graph"])], max_tokens=256, plan=plan)
    keys = {key for step in _keys(module.train_dataloader(), 20) for batch in step for key in batch}
    assert {key.split("-")[0] for key in keys} == {"audio", "graph"} and len(keys) == 30
    with pytest.raises(ValueError, match=r"expected samples of the tasks \['none'\]"):
        PackedDataModule([Source(str(shards), tasks=["none"])], plan=plan).train_dataloader()


def test_validation_covers_everything_once_in_order(shards: Path, plan: BatchPlan) -> None:
    module = _module(shards, plan, val_sources=[Source(str(shards))])
    loader = module.val_dataloader()
    steps = [list(loader), list(loader)]
    assert len(loader) == len(steps[0]) and _equal(*steps)
    assert sorted(key for step in steps[0] for batch in step.packs for key in batch.keys) == sorted(
        f"{kind}-{number}" for kind in ("text", "image", "audio", "graph") for number in range(15)
    )


def test_what_cannot_work_is_refused(shards: Path, plan: BatchPlan) -> None:
    with pytest.raises(ValueError, match="expected the model's plan, got none"):
        PackedDataModule([Source(str(shards))]).train_dataloader()
    with pytest.raises(ValueError, match="sources: expected at least one"):
        PackedDataModule([])
    with pytest.raises(ValueError, match="weight: expected 0 or a positive number, got -1"):
        Source(str(shards), weight=-1)


class _Recorder(L.LightningModule):
    """Takes one manual optimizer step per batch and notes what it was given."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.fail_at = fail_at
        self.keys: list[list[list[str]]] = []
        self.validated: list[list[str]] = []

    def training_step(self, batch: Step, batch_idx: int) -> None:
        if self.global_step == self.fail_at:
            raise KeyboardInterrupt
        self.keys.append([pack.keys for pack in batch.packs])
        optimizer: Any = self.optimizers()
        self.manual_backward(self.weight * sum(batch.counts.values()) * 1e-6)
        optimizer.step()
        optimizer.zero_grad()

    def validation_step(self, batch: Step, batch_idx: int) -> None:
        self.validated += [pack.keys for pack in batch.packs]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _trainer(root: Path, max_steps: int, **changes: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **changes,
    )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_lightning_resumes_where_it_stopped(shards: Path, plan: BatchPlan, tmp_path: Path, num_workers: int) -> None:
    arguments: dict[str, Any] = {"num_workers": num_workers, "val_sources": [Source(expand(shards)[0])]}
    limits: dict[str, Any] = {"val_check_interval": 4, "num_sanity_val_steps": 0, "check_val_every_n_epoch": None}
    whole = _Recorder()
    _trainer(tmp_path, 12, enable_checkpointing=False, **limits).fit(whole, _module(shards, plan, **arguments))
    assert len(whole.keys) == 12 and whole.validated
    assert whole.keys == _keys(_module(shards, plan).train_dataloader(), 12)

    first, second = _Recorder(fail_at=7), _Recorder()
    every = L.pytorch.callbacks.ModelCheckpoint(tmp_path / "ckpt", save_last=True, every_n_train_steps=1)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        _trainer(tmp_path, 12, callbacks=[every], **limits).fit(first, _module(shards, plan, **arguments))
    module = _module(shards, plan, **arguments)
    _trainer(tmp_path, 12, enable_checkpointing=False, **limits).fit(
        second, module, ckpt_path=tmp_path / "ckpt" / "last.ckpt", weights_only=True
    )
    assert first.keys + second.keys == whole.keys
    assert torch.equal(second.weight, whole.weight)


def test_short_epochs_do_not_repeat_or_skip(shards: Path, plan: BatchPlan, tmp_path: Path) -> None:
    recorder = _Recorder()
    _trainer(tmp_path, 9, limit_train_batches=3, enable_checkpointing=False).fit(recorder, _module(shards, plan))
    assert recorder.keys == _keys(_module(shards, plan).train_dataloader(), 9)


def test_batches_move_as_a_whole(shards: Path, plan: BatchPlan) -> None:
    (step,) = islice(_module(shards, plan).train_dataloader(), 1)
    moved = step.to("meta")
    assert all(isinstance(batch, Batch) and batch.input_ids.is_meta for batch in moved.packs)
    items = [item for batch in moved.packs for media in batch.media.values() for item in media.items]
    assert items and all(tensor.is_meta for item in items for tensor in item.values())


def test_a_budget_ends_a_fit_and_its_resumed_rest(shards: Path, plan: BatchPlan, tmp_path: Path) -> None:
    mixture = Mixture(epochs=2.0)
    whole = _Recorder()
    options: dict[str, Any] = {"max_epochs": 1, "limit_val_batches": 0}
    trainer = _trainer(tmp_path, -1, enable_checkpointing=False, **options)
    trainer.fit(whole, _module(shards, plan, mixture=mixture))
    steps = len(_module(shards, plan, mixture=mixture).train_dataloader())
    assert len(whole.keys) == trainer.global_step == steps
    assert trainer.estimated_stepping_batches == steps
    assert whole.keys == _keys(_module(shards, plan).train_dataloader(), steps)

    first, second = _Recorder(fail_at=5), _Recorder()
    every = L.pytorch.callbacks.ModelCheckpoint(tmp_path / "ckpt", save_last=True, every_n_train_steps=1)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        _trainer(tmp_path, -1, callbacks=[every], **options).fit(first, _module(shards, plan, mixture=mixture))
    _trainer(tmp_path, -1, enable_checkpointing=False, **options).fit(
        second, _module(shards, plan, mixture=mixture), ckpt_path=tmp_path / "ckpt" / "last.ckpt", weights_only=True
    )
    assert first.keys + second.keys == whole.keys
    with pytest.raises(TypeError, match="no end"):
        len(_module(shards, plan).train_dataloader())


def test_sources_select_by_meta_and_cap(plan: BatchPlan, tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "tagged") as writer:
        for number in range(12):
            meta = {"language": ("en", "de", "fr")[number % 3], "difficulty": number / 12}
            writer.write(replace(text_record(f"r{number}"), meta=meta), {})

    def keys(**selection: Any) -> list[str]:
        samples = SampleSet([Source(str(tmp_path), **selection)], plan, 256)
        return [samples.sample(number).key for number in range(len(samples))]

    assert keys(where={"language": "de"}) == ["r1", "r4", "r7", "r10"]
    assert keys(where={"language": ["de", "fr"], "difficulty": {"max": 0.2}}) == ["r1", "r2"]
    assert (
        len(keys(max_samples=5)) == 5 and keys(max_samples=5) == keys(max_samples=5) and keys(max_samples=99) == keys()
    )
    with pytest.raises(ValueError, match=r"where \{'language': 'nl'\}, got none"):
        keys(where={"language": "nl"})


def test_unmixed_steps_say_what_they_hold(shards: Path, plan: BatchPlan) -> None:
    sources = [Source(str(shards), tasks=[task], name=task) for task in ("asr", "graph")]
    module = PackedDataModule(sources, Mixture(unmixed=True), max_tokens=256, packs_per_step=2, plan=plan)
    steps = list(islice(module.train_dataloader(), 12))
    assert {step.source for step in steps} == {"asr", "graph"}
    for step in steps:
        assert {batch_kind for pack in step.packs for batch_kind in pack.media} <= {"audio", "graph"}
        assert 0 < step.probability < 1
    mixed = next(iter(_module(shards, plan).train_dataloader()))
    assert mixed.source is None and mixed.probability is None
