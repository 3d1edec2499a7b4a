"""The page stands alone, shows what it should, and its parts hold up on edge cases."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from data.inspection.drawing import layout, mask_layer, video_player
from data.media import encode_mask, encode_png
from data.records import Part, Target
from data.shards import Sample
from eval.__main__ import main
from eval.benchmarks.lookup import benchmarks_of
from eval.benchmarks.quickstart import quickstart_benchmarks
from eval.log import read_log
from eval.metrics.calibration import calibration
from eval.metrics.statistics import Estimate
from eval.report.cards import card, choose
from eval.report.charts import estimate_bars
from eval.report.curves import read_stages, stage_sections
from eval.report.page import read_phases, seconds_at_work
from eval.report.profile import Profile, confidence_of
from inference.files import result_to_json
from layers.calls import AudioResult, BoxesResult, Call, MasksResult, VideoResult
from layers.media import Graph
from tests.eval.conftest import (
    answer_sample,
    box_sample,
    gold,
    make_sample,
    mask_sample,
    picture,
    write_log,
    write_shards,
)

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
    assert [right for _, right in choose(Profile(benchmark).over(rows))] == [True] * 6
    rows[4] = replace(rows[4], text="2")
    assert [right for _, right in choose(Profile(benchmark).over(rows))] == [True] * 5 + [False]
    rows = [replace(row, text="2") if i > 8 else row for i, row in enumerate(rows)]
    chosen = choose(Profile(benchmark).over(rows))
    assert [right for _, right in chosen] == [True] * 3 + [False] * 3
    assert chosen == choose(Profile(benchmark).over(rows[::-1]))
    assert "what is it?" not in card(*chosen[0], samples[0])  # this row carries no prompt: a spoken question


def test_a_card_draws_every_box_and_mask_with_its_label() -> None:
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 3:9, 4:8], masks[1, 20:30, 20:30] = True, True
    wanted = [{"box_xyxy": [4.0, 3.0, 8.0, 9.0], "label": "red 7"}, {"box_xyxy": [20.0, 20.0, 30.0, 30.0]}]
    cut = [{"mask": encode_mask(mask), "label": "red 7"} for mask in masks]
    calls = [Part("call", task="detect", prompt="red 7", target=name) for name in ("t0", "t1")]
    targets = {"t0": Target("boxes", wanted), "t1": Target("masks", cut)}
    sample = make_sample("box", 0, calls, targets=targets, image=picture(0))
    call = Call("detect", "red 7")
    boxes = BoxesResult(call, ((1, 2, 3, 4), (5, 6, 7, 8), (9, 9, 12, 12)), (0.9, 0.5, 0.25), ("red 7", "4", "4"))
    found = [result_to_json(item) for item in (boxes, MasksResult(call, masks, (0.75, 0.5), ("red 7", "blue 2")))]
    assert json.loads(json.dumps(found)) == found
    html = card(replace(gold(sample, "box"), results=found), True, sample)
    assert html.count('class="box head"') == 3 and html.count('class="box reference"') == 2
    assert "red 7 (0.90), 4 (0.50), 4 (0.25)" in html and "red 7 (0.75), blue 2 (0.50)" in html
    assert html.count("data:image/png") == 2, "the picture, and one layer with all masks"


def test_what_was_found_in_a_made_picture_is_drawn_on_it_and_not_on_the_input() -> None:
    refers = ({"type": "result", "call_index": 0},)
    calls = [
        Part("call", task="draw", prompt="a 4", target="t0"),
        Part("call", task="ground", prompt="4", groundings=refers, target="t1"),
        Part("call", task="seg", prompt="4", groundings=({"type": "result", "call_index": 1},), target="t2"),
    ]
    made = torch.full((3, 8, 16), 90, dtype=torch.uint8)
    mask = Target("mask", encode_mask(torch.ones(8, 16, dtype=torch.bool)))
    targets = {"t0": Target("image", file="t0.png"), "t1": Target("box", [1.0, 1.0, 9.0, 7.0]), "t2": mask}
    sample = make_sample("box", 0, calls, targets=targets, members={"t0.png": encode_png(made)}, image=picture(0))
    shown, drawn, reference = card(gold(sample, "box"), True, sample).split("<figure>")[1:]
    assert 'viewBox="0 0 32 32"' in shown and 'class="box' not in shown and shown.count("data:image/png") == 1
    assert 'viewBox="0 0 16 8"' in drawn and drawn.count('class="box head"') == 1
    assert drawn.count("data:image/png") == 2, "the mask lies on it"
    assert 'class="box' not in reference


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


def test_a_run_without_times_has_no_phases() -> None:
    assert read_phases(Path("nowhere.json")) == []


def test_time_at_work_counts_phases_beside_each_other_once(tmp_path: Path) -> None:
    path = tmp_path / "phases.json"
    times = {"a": [[100.0, 110.0], [200.0, 205.0]], "b": [[105.0, 120.0]], "c": [[202.0, 203.0]], "d": []}
    entries = [
        {"name": name, "seconds": sum(end - begin for begin, end in intervals), "intervals": intervals}
        for name, intervals in times.items()
    ]
    path.write_text(json.dumps({"phases": entries}))
    assert seconds_at_work(path) == 25.0
    path.write_text(json.dumps({"phases": [{"name": "a", "seconds": 3.0}, {"name": "b", "seconds": 4.0}]}))
    assert seconds_at_work(path) == 7.0
    mask = torch.zeros(4, 4, dtype=torch.bool)
    assert mask_layer([mask[:2]], [mask]).startswith(b"\x89PNG")


def questions(number: int) -> list[Sample]:
    made = []
    for i in range(number):
        meta = {"difficulty": i / number, "question_type": "shape" if i % 3 else "<colour>"}
        made.append(answer_sample("image_qa", i, str(i % 4), meta=meta, question="what " * (1 + i % 5)))
    return made


@pytest.fixture
def logs(tmp_path: Path) -> tuple[Path, Path]:
    samples = questions(40)
    for split in ("test", "val"):
        write_shards(tmp_path / "data", split, "image_qa", samples)
    benchmarks = quickstart_benchmarks(tmp_path / "data", "test", ["image_qa"])
    rows = []
    for i, sample in enumerate(samples):
        prompt = "user: [image] " + "what " * (1 + i % 5)
        row = replace(gold(sample, "image_qa"), log_probability=-0.1 - i / 40, prompt=prompt)
        rows.append(row if i < 25 else replace(row, text="9", log_probability=-2.0))
    rows[3] = replace(rows[3], finish_reason="length", text="x" * 100_000)
    first = write_log(tmp_path / "one" / "log.jsonl", benchmarks, rows)
    return first, write_log(tmp_path / "two" / "log.jsonl", benchmarks, [gold(item, "image_qa") for item in samples])


def check_page(path: Path) -> str:
    page = path.read_text()
    parser = Balance()
    parser.feed(page)
    assert (parser.wrong, parser.open) == ([], [])
    assert all(address.startswith(("data:", "#")) for address in parser.addresses)
    assert not re.search(r"https?://|@import|<script|<colour>", page)
    return page


def test_a_page_about_logs_shows_parts_lengths_difficulty_and_calibration(
    logs: tuple[Path, Path], tmp_path: Path
) -> None:
    assert main(["report", str(logs[0]), "--out", str(tmp_path / "page.html")]) == 0
    page = check_page(tmp_path / "page.html")
    for words in ("right by difficulty", "right by words of the question", "calibration: error", "&lt;colour&gt;"):
        assert words in page
    assert "cut at the length limit" in page and "quickstart/image_qa@1" in page
    assert len(page) < 400_000  # the long reply is cut where it is shown
    assert main(["report", "--out", str(tmp_path / "page.html")]) == 2


def test_a_page_about_a_comparison_shows_where_runs_disagree(logs: tuple[Path, Path], tmp_path: Path) -> None:
    assert main(["compare", *map(str, logs), "--out", str(tmp_path / "page.html")]) == 0
    page = check_page(tmp_path / "page.html")
    assert "16 became right, 0 became wrong" in page and page.count('class="two pair"') == 3
    assert "interval good" in page and "better" in page and "two against one" in page


def test_curves_group_equal_places_and_leave_out_what_is_unknown(logs: tuple[Path, Path]) -> None:
    log = read_log(logs[0])
    (benchmark,) = benchmarks_of(log).values()
    profile = Profile(benchmark)
    assert sum(right for _, right in profile.over(log.rows("image_qa"))) == 24
    points = profile._curve("question")
    assert [place for place, _ in points] == pytest.approx(sorted({place for place, _ in points}))
    assert sum(value.n for _, value in points) == 40 and len(points) <= 5
    assert len(profile._curve("difficulty")) == 8
    assert dict(profile.reasons) == {"cut at the length limit": 1}
    assert math.isnan(confidence_of(gold(questions(1)[0], "image_qa")))


def test_calibration_by_hand() -> None:
    found = calibration([0.2, 0.2, 0.8, 0.8], [False, False, True, False], num_bins=2)
    assert [level for level, _ in found.bins] == pytest.approx([0.2, 0.8])
    assert [share.value for _, share in found.bins] == [0.0, 0.5]
    assert found.error == pytest.approx((0.2 + 0.3) / 2)
    assert found.brier == pytest.approx((2 * 0.04 + 0.04 + 0.64) / 4)
    assert len(calibration([0.5], [True]).bins) == 1
    with pytest.raises(ValueError, match="at least one"):
        calibration([], [])


def test_bars_are_cut_and_scaled() -> None:
    rows = [(f"part {i}", Estimate(50.0 * i, 3, 1.0)) for i in range(45)]
    shown = estimate_bars(rows)
    assert shown.count("<tr>") == 40 and "5 more parts" in shown
    assert "width:100.0%" not in shown and estimate_bars([]) == ""


def test_generated_sounds_and_videos_play_on_a_card() -> None:
    sample = answer_sample("image_qa", 0, "1")
    sound = AudioResult(Call("sound", "a bark"), torch.rand(1, 400), 8000, notes=("it did not read 'loudly'",))
    film = VideoResult(Call("film", "a dog"), torch.zeros(3, 3, 16, 16, dtype=torch.uint8), 5.0)
    logged = json.loads(json.dumps([result_to_json(sound), result_to_json(film)]))
    assert logged[0]["notes"] == ["it did not read 'loudly'"] and "notes" not in logged[1]
    calls = [{"task": "sound", "prompt": "a bark", "groundings": []}, {"task": "film", "prompt": "", "groundings": []}]
    page = card(replace(gold(sample, "image_qa"), results=logged, calls=calls), True, sample)
    assert re.search(r'<audio controls [^>]*src="data:audio/flac;base64,', page)
    assert re.search(r'<video controls [^>]*src="data:video/mp4;base64,', page)
    assert "0.1 s of sound" in page and "3 frames at 5 a second" in page and "did not read" in page
    assert 'src="data:image/gif;base64,' in video_player(b"GIF89a", "film.gif")
