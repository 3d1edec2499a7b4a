"""The page stands alone, shows what it should, and its parts hold up on edge cases."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from data.inspection.drawing import layout, mask_layer
from eval.__main__ import main
from eval.benchmarks.quickstart import quickstart_benchmarks
from eval.report.cards import card, choose
from eval.report.curves import read_stages, stage_sections
from eval.report.page import clock, read_phases
from layers.media import Graph
from tests.eval.conftest import answer_sample, box_sample, gold, mask_sample, write_log, write_shards

VOID = {"meta", "image", "line", "circle", "rect", "polyline", "path", "br", "input"}


class Balance(HTMLParser):
    """Collects tags that are closed in the wrong order, and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.wrong.append(tag)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[3:9, 4:8] = True
    made = {
        "image_qa": [answer_sample("image_qa", i, "<b>3 & 4</b>") for i in range(9)],
        "box": [box_sample(i, [2.0, 3.0, 12.0, 14.0]) for i in range(3)],
        "mask": [mask_sample(i, mask) for i in range(2)],
    }
    for name, samples in made.items():
        write_shards(tmp_path / "data", "test", name, samples)
        write_shards(tmp_path / "data", "val", name, samples)
    benchmarks = quickstart_benchmarks(tmp_path / "data", "test", made)
    rows = [gold(sample, name) for name in made for sample in benchmarks[name].records()]
    rows = [replace(row, raw="<ground>red 7</ground>", prompt="user: [image] where?") for row in rows]
    rows[0] = replace(rows[0], text="seven", finish_reason="length")
    rows[9] = replace(rows[9], errors=[{"kind": "unclosed", "message": "<ground> not closed"}], calls=[], results=[])
    folder = tmp_path / "run"
    log = write_log(folder / "predictions" / "model.jsonl", benchmarks, rows)
    assert main(["score", str(log), "--out", str(folder / "scores.json")]) == 0
    phases = {"phases": [{"name": "data", "seconds": 61.0}, {"name": "later", "seconds": 0.0}]}
    (folder / "phases.json").write_text(json.dumps(phases))
    curves = folder / "stage1_x" / "csv" / "version_0"
    curves.mkdir(parents=True)
    (curves / "metrics.csv").write_text("step,train/loss_token,val/token\n0,2.0,\n1,nan,\n2,1.0,\n2,,1.5\n")
    return folder


def test_the_page_stands_alone(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert main(["report", "--run", str(run), "--out", str(out)]) == 0
    page = out.read_text()
    parser = Balance()
    parser.feed(page)
    assert (parser.wrong, parser.open) == ([], [])
    assert all(address.startswith(("data:", "#")) for address in parser.addresses)
    assert not re.search(r"https?://|@import|<script", page)
    for words in ("image_qa", "1 min 01 s", "Learning curves", "cut at the length limit", "unclosed", "stage1_x"):
        assert words in page
    assert "<b>3 &amp; 4</b>" not in page and "&lt;b&gt;3 &amp; 4&lt;/b&gt;" in page  # text of a model is never markup
    assert page.count('class="tag bad">wrong') == 2
    assert 'class="box head"' in page and 'class="box reference"' in page


def test_a_run_without_logs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--run", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert "expected a prediction log" in capsys.readouterr().err


def test_examples_show_right_and_wrong_alike(tmp_path: Path) -> None:
    samples = [answer_sample("image_qa", i, "1") for i in range(20)]
    write_shards(tmp_path, "test", "image_qa", samples)
    benchmark = quickstart_benchmarks(tmp_path, "test", ["image_qa"])["image_qa"]
    rows = [gold(sample, "image_qa") for sample in samples]
    assert [right for _, right in choose(benchmark, rows)] == [True] * 6
    rows[4] = replace(rows[4], text="2")
    assert [right for _, right in choose(benchmark, rows)] == [True] * 5 + [False]
    rows = [replace(row, text="2") if i > 8 else row for i, row in enumerate(rows)]
    chosen = choose(benchmark, rows)
    assert [right for _, right in chosen] == [True] * 3 + [False] * 3
    assert chosen == choose(benchmark, rows[::-1])
    assert "what is it?" not in card(*chosen[0], samples[0])  # this row carries no prompt: a spoken question


def test_joined_logs_of_a_resumed_stage(tmp_path: Path) -> None:
    for version, rows in (("version_0", "0,3.0\n1,2.0\n2,9.0\n"), ("version_1", "2,1.0\n3,0.5\n")):
        (tmp_path / "stage" / version).mkdir(parents=True)
        (tmp_path / "stage" / version / "metrics.csv").write_text("step,train/loss_token\n" + rows)
    (tmp_path / "superseded" / "old").mkdir(parents=True)
    (tmp_path / "superseded" / "old" / "metrics.csv").write_text("step,train/loss_token\n0,1.0\n")
    stages = read_stages(tmp_path)
    assert list(stages) == ["stage"]
    assert stages["stage"][0].train == [(0, 3.0), (1, 2.0), (2, 1.0), (3, 0.5)]
    assert "polyline" in stage_sections(stages)


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_graph_layouts_stay_in_the_frame_and_apart(count: int) -> None:
    edges = torch.tensor([[i for i in range(1, count)], [0] * (count - 1)], dtype=torch.int64).reshape(2, -1)
    places = layout(Graph(tuple(map(str, range(count))), edges))
    assert np.isfinite(places).all() and np.abs(places).max() <= 1 + 1e-9
    gaps = np.linalg.norm(places[:, None] - places[None], axis=-1) + 9 * np.eye(count)
    assert gaps.min() > 0.15


def test_small_parts() -> None:
    assert [clock(seconds) for seconds in (4.4, 200, 3900)] == ["4 s", "3 min 20 s", "1 h 05 min"]
    assert read_phases(Path("nowhere.json")) == []
    mask = torch.zeros(4, 4, dtype=torch.bool)
    assert mask_layer(mask[:2], mask).startswith(b"\x89PNG")
