from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from data.__main__ import main
from data.checks import problems_of
from data.commands.index import each_indexed, index_shard
from data.index import index_path, lengths_path
from data.media import encode_mask, encode_png
from data.records import Part, Target
from data.shards import Sample, ShardWriter, expand, read_samples
from models.plan import BatchPlan
from tests.data.conftest import assistant, audio_sample, graph_sample, image_sample, text_record


def test_good_shards(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(shards)]) == 0
    assert "3 shards, 60 good samples, 0 errors" in capsys.readouterr().out
    assert main(["index", str(shards)]) == 0
    assert all(Path(index_path(path)).is_file() for path in expand(shards))
    assert "3 shards, 60 samples" in capsys.readouterr().out
    assert main(["inspect", str(shards)]) == 0
    assert "scene" in capsys.readouterr().out
    assert main(["inspect", str(shards), "--key", "image-3"]) == 0
    shown = capsys.readouterr().out
    assert '"prompt": "red 7"' in shown and "scene.png: " in shown
    assert main(["inspect", str(shards), "--key", "image-99"]) == 1


@pytest.mark.slow
def test_many_processes_index_alike(shards: Path, plan: BatchPlan) -> None:
    paths = expand(shards)
    alone = [index_shard(path, plan, True) for path in paths]
    assert [one.samples for one in alone] == [20, 20, 20] and not any(one.errors for one in alone)
    made = [Path(path).read_bytes() for path in _sidecars(paths, plan)]
    for path in _sidecars(paths, plan):
        Path(path).unlink()
    assert list(each_indexed(paths, plan, False, 2)) == alone
    assert [Path(path).read_bytes() for path in _sidecars(paths, plan)] == made


def _sidecars(paths: list[str], plan: BatchPlan) -> list[str]:
    return [place for path in paths for place in (index_path(path), lengths_path(path, plan.hash))]


def test_what_is_wrong_is_listed_without_stopping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, members = image_sample("image-bad")
    with ShardWriter(tmp_path, "x", 2) as writer:
        writer.write(record, {"scene.png": members["scene.png"][:50]})
        writer.write(text_record("text-0"), {})
        writer.write(text_record("text-1"), {})
        writer.write(text_record("text-2"), {})
        writer.write(text_record("text-3"), {})
    cut = writer.paths[1]
    cut.write_bytes(cut.read_bytes()[:700])
    assert main(["validate", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert "3 shards, 2 good samples, 3 errors" in told.out
    assert "record 'image-bad': 'scene.png': expected an image" in told.err
    assert f"{cut}: cut short" in told.err
    assert main(["index", str(tmp_path)]) == 1


@pytest.mark.parametrize("command", ["validate", "index", "inspect"])
def test_no_shards(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, f"{tmp_path}/none-*.tar"]) == 2
    assert "found none" in capsys.readouterr().err


def test_validation_knows_tasks_and_reports(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "tasks.yaml"
    known = [{"name": "ground", "head": "boxes", "link": "text", "payload": ["prompt", "regions"]}]
    table.write_text(yaml.safe_dump({"num_bins": 10, "max_nodes": 8, "tasks": known}))
    report = tmp_path / "report.json"
    assert main(["validate", str(shards), "--tasks", str(table), "--report", str(report), "--workers", "2"]) == 1
    value = json.loads(report.read_text())
    by_task = {row["task"]: (row["good"], row["bad"]) for row in value["samples"]}
    assert by_task == {"text_qa": (15, 0), "scene": (0, 15), "asr": (15, 0), "graph": (0, 15)}
    assert any("expected a task of ['ground'], got 'seg'" in line for line in value["errors"])
    assert main(["validate", str(shards), "--tasks", str(report)]) == 2
    assert "expected a task table" in capsys.readouterr().err


def _image_problems(**changes: object) -> list[str]:
    record, members = image_sample("image-1")
    targets = {**record.targets, **changes.pop("targets", {})}
    record = replace(record, targets=targets, **changes)
    return problems_of(Sample("image-1", record, members))


def test_what_does_not_fit_is_told() -> None:
    assert _image_problems() == []
    assert _image_problems(targets={"box": Target("box", [4.0, 2.0, 41.0, 9.0])}) == [
        "target 'box': box: expected x1 < x2 and y1 < y2 within 40x24 pixels, got [4.0, 2.0, 41.0, 9.0]"
    ]
    small = Target("mask", encode_mask(torch.ones(5, 6, dtype=torch.bool)))
    assert _image_problems(targets={"mask": small}) == ["target 'mask': expected a mask of 40x24, got 6x5"]
    record, _ = image_sample("image-1")
    assert "expected an image before it, got none" in _image_problems(messages=record.messages[1:2])[1]
    assert (
        _image_problems(messages=record.messages[1:2])[0]
        == "media: expected every one in a message, got ['scene'] in none"
    )
    graph, members = graph_sample("graph-1")
    call = Part("call", task="point", groundings=({"type": "node", "index": 5},))
    outside = replace(graph, messages=(graph.messages[0], assistant(call)))
    assert problems_of(Sample("g", outside, members)) == ["call of 'point': node: expected 0 to 4, got 5"]
    clip, members = audio_sample("audio-1")
    call = Part("call", task="when", groundings=({"type": "time_span", "start": 0.2, "end": 0.7},))
    late = replace(clip, messages=(clip.messages[0], assistant(call)))
    assert problems_of(Sample("a", late, members)) == [
        "call of 'when': time span: expected 0 <= start < end <= 0.500 s, got 0.2 to 0.7"
    ]


def test_a_target_is_checked_on_what_the_call_is_about(tmp_path: Path) -> None:
    """An edit makes a picture of 16 x 8; what is cut out of it and found in it is on that, as a page shows it."""
    record, members = image_sample("image-1")
    edited = torch.full((3, 8, 16), 200, dtype=torch.uint8)
    refers = ({"type": "result", "call_index": 0},)
    calls = (
        Part("call", task="edit", prompt="7 blue", target="made"),
        Part("call", task="seg", prompt="7", groundings=refers, target="mask"),
        Part("call", task="ground", prompt="7", groundings=({"type": "result", "call_index": 1},), target="box"),
    )
    mask = Target("mask", encode_mask(torch.ones(8, 16, dtype=torch.bool)))
    targets = {"made": Target("image", file="made.png"), "mask": mask, "box": Target("box", [1.0, 1.0, 16.0, 8.0])}
    record = replace(record, messages=(record.messages[0], assistant(*calls)), targets=targets)
    members = {**members, "made.png": encode_png(edited)}
    assert problems_of(Sample("image-1", record, members)) == []
    with ShardWriter(tmp_path / "shards", "x") as writer:
        writer.write(record, members)
    page = tmp_path / "page.html"
    assert main(["inspect", str(tmp_path / "shards"), "--html", str(page)]) == 0
    assert page.read_text().count('viewBox="0 0 16 8"') == 3, "the edit, and the two that are about it"

    large = replace(record, targets={**targets, "box": Target("box", [1.0, 1.0, 17.0, 8.0])})
    assert problems_of(Sample("image-1", large, members)) == [
        "target 'box': box: expected x1 < x2 and y1 < y2 within 16x8 pixels, got [1.0, 1.0, 17.0, 8.0]"
    ]
    calls = (replace(calls[0], groundings=({"type": "result", "call_index": 0},)), *calls[1:])
    itself = replace(record, messages=(record.messages[0], assistant(*calls)))
    assert problems_of(Sample("image-1", itself, members)) == [
        "call of 'edit': result: expected one of 0 earlier calls of the turn, got 0"
    ]


def test_a_page_of_samples_shows_everything(shards: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["inspect", str(shards), "--html", str(page), "--each", "2"]) == 0
    told = page.read_text()
    assert told.count("<article") == 8 and "image/png;base64" in told and "audio/flac;base64" in told
    assert "marker-end" in told and 'class="box reference"' in told and "histogram" in told
    assert "http" not in told.replace("http://www.w3.org", "")  # it holds everything that it shows
    again = tmp_path / "again.html"
    assert main(["inspect", str(shards), "--html", str(again), "--each", "2"]) == 0
    assert again.read_text() == told


def test_writing_from_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, members = image_sample("image-1")
    clip, sounds = audio_sample("audio-1")
    graph, nodes = graph_sample("graph-1")
    lines = []
    for record, files in ((picture, members), (clip, sounds), (graph, nodes)):
        for name, data in files.items():
            (tmp_path / f"{record.key}.{name}").write_bytes(data)
        value = json.loads(record.to_json())
        del value["version"]
        for item in value["media"].values():
            item["path"] = f"{record.key}.{item.pop('file')}"
            item.pop("size")
            item.pop("sample_rate", None)
        lines.append(json.dumps({"key": record.key, **value}))
    source = tmp_path / "records.jsonl"
    source.write_text("\n".join(lines) + "\n")
    assert main(["write", str(source), "--out", str(tmp_path / "out"), "--samples", "2"]) == 0
    written = list(read_samples(str(tmp_path / "out" / "train")))
    for record, item in zip((picture, clip, graph), written, strict=True):
        media = {name: replace(m, file=f"{name}.{m.file.split('.')[-1]}") for name, m in record.media.items()}
        assert item.record.to_json() == replace(record, media=media).to_json()
    assert "3 records in 2 shards" in capsys.readouterr().out
    source.write_text(lines[0] + "\n" + lines[1].replace("audio-1.clip", "nowhere") + "\n")
    assert main(["write", str(source), "--out", str(tmp_path / "bad")]) == 2
    assert "line 2: file cannot be read" in capsys.readouterr().err
    assert not list((tmp_path / "bad").rglob("*.tar*"))


def test_splits_keep_related_records_together(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ShardWriter(tmp_path / "in", "x") as writer:
        for number in range(300):
            writer.write(replace(text_record(f"r{number}"), meta={"speaker": number % 60}), {})
    arguments = ["--shares", "train=0.6,val=0.2,test=0.2", "--by", "speaker"]
    assert main(["split", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *arguments]) == 0
    sides: dict[int, set[str]] = {}
    for sample in read_samples(str(tmp_path / "out" / "*" / "*.tar")):
        sides.setdefault(sample.record.meta["speaker"], set()).add(sample.record.split)
    assert len(sides) == 60 and all(len(side) == 1 for side in sides.values())
    counts = Counter(next(iter(side)) for side in sides.values())
    assert counts["train"] > counts["val"] > 0 and counts["test"] > 0
    assert main(["split", str(shards), "--out", str(tmp_path / "no"), "--by", "speaker"]) == 2
    assert "expected the field 'speaker' in meta" in capsys.readouterr().err
    assert main(["split", str(shards), "--out", str(tmp_path / "no"), "--shares", "train=0.5"]) == 2


def test_a_sample_is_random_and_even(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "few"
    assert main(["sample", str(shards), "--out", str(out), "--count", "4", "--per-task"]) == 0
    chosen = list(read_samples(str(out)))
    assert Counter(item.record.task for item in chosen) == dict.fromkeys(("text_qa", "scene", "asr", "graph"), 4)
    assert (
        main(["sample", str(shards), "--out", str(tmp_path / "other"), "--count", "4", "--per-task", "--seed", "1"])
        == 0
    )
    assert {item.key for item in read_samples(str(tmp_path / "other"))} != {item.key for item in chosen}
    assert main(["sample", str(shards), "--out", str(tmp_path / "all"), "--count", "99"]) == 2
    assert "expected at most 60 records, got 99" in capsys.readouterr().err
