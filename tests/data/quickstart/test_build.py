from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("espeakng_loader")
pytest.importorskip("sklearn")

from data.quickstart import build as building
from data.quickstart.modules import read_module_graph
from data.quickstart.plan import Job, counts, jobs
from data.shards import expand, read_samples

SCALE = 0.004


def silent() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("quickstart")
    building.build(directory, scale=SCALE, console=silent())
    return directory


def test_counts_hashes_and_identities(built):
    manifest = json.loads((built / "manifest.json").read_text())
    assert manifest["complete"] and manifest["counts"] == counts(SCALE)
    assert {job.name for job in jobs(SCALE)} == set(manifest["shards"])
    owned = {
        split: {name: set(values) for name, values in item.items()} for split, item in manifest["identities"].items()
    }
    for name in ("scans", "voices", "modules"):
        sets = [owned[split][name] for split in owned]
        assert len(set.union(*sets)) == sum(map(len, sets))
    for split in ("train", "val", "test"):
        found: dict[str, int] = {}
        for sample in read_samples(expand(built / split)):
            record, meta = sample.record, sample.record.meta
            found[record.task] = found.get(record.task, 0) + 1
            assert record.split == split
            assert {item["scan"] for item in meta.get("objects", [])} <= owned[split]["scans"]
            assert {meta["scan"]} <= owned[split]["scans"] if "scan" in meta else True
            assert set(meta.get("voices", [])) <= owned[split]["voices"]
            named = set(meta.get("modules", [])) | ({meta["module"]} if "module" in meta else set())
            assert named <= owned[split]["modules"]
        assert found == manifest["counts"][split]
    for name, entry in manifest["shards"].items():
        assert hashlib.sha256((built / name).read_bytes()).hexdigest() == entry["sha256"]


def test_a_shard_has_the_same_bytes_whenever_it_is_written(built, tmp_path):
    manifest = json.loads((built / "manifest.json").read_text())
    some = ("train/speech", "train/scenes", "test/asr", "test/speakers", "test/routing")  # clips follow other clips
    chosen = [job for job in jobs(SCALE) if job.name.startswith(some)][::-1]
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    for written in building._write_all(chosen, 0, read_module_graph(), tmp_path, 1):
        assert written.sha256 == manifest["shards"][written.name]["sha256"]


def test_a_second_run_writes_only_what_is_missing_or_damaged(built, monkeypatch):
    manifest = built / "manifest.json"
    before = manifest.read_bytes()
    (built / "val/asr-000000.tar").unlink()
    damaged = built / "val/box-000000.tar"
    damaged.write_bytes(damaged.read_bytes()[:-600])
    todo: list[str] = []
    original = building._write_all

    def watched(some: list[Job], *rest):
        todo.extend(job.name for job in some)
        return original(some, *rest)

    monkeypatch.setattr(building, "_write_all", watched)
    building.build(built, scale=SCALE, console=silent())
    assert sorted(todo) == ["val/asr-000000.tar", "val/box-000000.tar"]
    assert manifest.read_bytes() == before


def test_bad_arguments_and_foreign_shards_are_refused(tmp_path):
    with pytest.raises(building.BuildError, match="expected scale > 0"):
        building.build(tmp_path, scale=0, console=silent())
    (tmp_path / "train").mkdir()
    (tmp_path / "train/mine.tar").write_bytes(b"")
    with pytest.raises(building.BuildError, match=r"another origin: train/mine\.tar"):
        building.build(tmp_path, scale=SCALE, console=silent())
    assert not (tmp_path / "manifest.json").exists()
