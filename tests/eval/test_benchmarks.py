"""Benchmarks: gold scores the maximum, constants what they deserve, and hand-made mistakes cost what they must."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.media import encode_mask
from data.quickstart.images import draw as make_draw
from data.quickstart.images import edit as make_edit
from data.quickstart.routing import routing as make_routing
from data.quickstart.scene_turns import object_meta, png
from data.quickstart.scenes import draw_scene
from data.records import Part, Target
from data.shards import Sample
from eval.benchmarks.benchmark import Benchmark
from eval.benchmarks.quickstart import quickstart_benchmarks
from eval.metrics.statistics import Score
from eval.prediction import Prediction
from inference.files import decode_image, encode_image
from tests.eval.conftest import answer_sample, box_sample, call_sample, gold, make_sample, mask_sample, write_shards


def run(
    data: Path, name: str, samples: list[Sample], validation: list[Sample] | None = None
) -> tuple[Benchmark, list[Prediction], dict[str, Score]]:
    write_shards(data, "test", name, samples)
    write_shards(data, "val", name, validation or samples)
    benchmark = quickstart_benchmarks(data, "test", [name])[name]
    rows = [gold(sample, name) for sample in benchmark.records()]
    return benchmark, rows, benchmark.score(rows)


def value(benchmark: Benchmark, rows: list[Prediction], metric: str) -> float:
    return benchmark.score(rows)[metric].value


def test_image_qa_is_the_mean_over_types(tmp_path: Path) -> None:
    samples = [answer_sample("image_qa", i, str(i % 2), "count") for i in range(6)]
    samples += [answer_sample("image_qa", i, "red", "colour") for i in range(6, 8)]
    benchmark, rows, scores = run(tmp_path, "image_qa", samples)
    assert (scores["image_qa"].value, scores["image_qa"].n) == (1.0, 8)
    rows[0] = replace(rows[0], text="5")  # count 5/6
    rows[6] = replace(rows[6], finish_reason="length")  # colour 1/2, though the text is right
    score = benchmark.score(rows)["image_qa"]
    assert score.value == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert {name: part.value for name, part in score.parts.items()} == pytest.approx({"count": 5 / 6, "colour": 0.5})
    # The constant knows the question's type: 0 or 1 is right half of the time, red always.
    assert value(benchmark, map(benchmark.constant, rows), "image_qa") == pytest.approx(0.75)


def test_the_constant_answer_does_not_see_the_reference(tmp_path: Path) -> None:
    samples = [answer_sample("speakers", i, "one" if i % 2 else "two", "speakers") for i in range(6)]
    benchmark, rows, scores = run(tmp_path, "speakers", samples)
    assert set(scores["speakers"].parts) == {"one", "two"}
    assert value(benchmark, map(benchmark.constant, rows), "speakers") == 0.5


def test_box_from_the_head_and_from_the_tokens(tmp_path: Path) -> None:
    benchmark, rows, scores = run(tmp_path, "box", [box_sample(i, [2.0, 2.0, 12.0 + i, 12.0]) for i in range(4)])
    assert scores["box_acc50"].value == scores["box_acc50_tokens"].value == 1.0
    far = [20.0, 20.0, 30.0, 30.0]
    rows[0] = replace(rows[0], results=[{"type": "boxes", "boxes_xyxy": [far], "scores": [1.0]}])
    rows[1] = replace(rows[1], results=[None], errors=[{"kind": "head", "message": "refused"}])
    rows[2] = replace(rows[2], calls=[{"task": "ground", "prompt": "x", "groundings": []}])
    rows[3] = replace(rows[3], errors=[{"kind": "unclosed", "message": "broken"}])
    assert value(benchmark, rows, "box_acc50") == 0.25
    assert value(benchmark, rows, "box_acc50_tokens") == 0.5


def test_mask_giou(tmp_path: Path) -> None:
    masks = [torch.zeros(32, 32, dtype=torch.bool) for _ in range(3)]
    for mask in masks:
        mask[4:8, 4:8] = True
    benchmark, rows, scores = run(tmp_path, "mask", [mask_sample(i, mask) for i, mask in enumerate(masks)])
    assert scores["mask_giou"].value == 1.0
    half = torch.zeros(32, 32, dtype=torch.bool)
    half[4:8, 4:6] = True
    rows[0] = replace(rows[0], results=[{"type": "mask", "mask": encode_mask(half)}])
    rows[1] = replace(rows[1], results=[{"type": "mask", "mask": encode_mask(half[:16])}])  # of another size
    score = benchmark.score(rows)["mask_giou"]
    assert score.value == pytest.approx((0.5 + 0 + 1) / 3)
    assert score.parts["cIoU"].value == pytest.approx((8 + 0 + 16) / 48)
    assert value(benchmark, map(benchmark.constant, rows), "mask_giou") == 1.0  # all validation masks are this one


def test_word_error_rate_of_languages(tmp_path: Path) -> None:
    spoken = [("one two", "en"), ("three four", "en"), ("fünf", "de"), ("sechs sieben acht", "de")]
    samples = [
        answer_sample("asr", i, text, meta={"transcript": text, "language": language, "voice": f"v{i}"})
        for i, (text, language) in enumerate(spoken)
    ]
    benchmark, rows, scores = run(tmp_path, "asr", samples)
    assert scores["wer"].value == 0.0
    rows[0] = replace(rows[0], text="one too")
    rows[3] = replace(rows[3], finish_reason="length")
    score = benchmark.score(rows)["wer"]
    assert score.value == pytest.approx((1 + 3) / 8)
    assert score.parts["language: de"].value == pytest.approx(3 / 4)
    assert score.parts["voice: v0"].value == pytest.approx(1 / 2)
    assert value(benchmark, map(benchmark.constant, rows), "wer") <= 1.0


def label_sample(index: int, label: str, module: str) -> Sample:
    call = Part("call", task="node_class", target="t0")
    return call_sample("node_family", index, [call], targets={"t0": Target("label", label)}, meta={"module": module})


def test_node_family_is_clustered_by_module(tmp_path: Path) -> None:
    samples = [label_sample(i, "net" if i < 4 else "text", f"m{i // 2}") for i in range(8)]
    benchmark, rows, scores = run(tmp_path, "node_family", samples)
    assert scores["node_family"].value == 1.0
    wrong = [replace(row, results=[{"type": "label", "label": "net", "probabilities": {}}]) for row in rows]
    score = benchmark.score(wrong)["node_family"]
    assert score.value == 0.5
    # Four modules, deviations +1 +1 -1 -1 per module: 4/3/64*4
    assert score.stderr == pytest.approx(np.sqrt(4 / 3 / 64 * 4))
    assert value(benchmark, map(benchmark.constant, rows), "node_family") == 0.5
    rows[0] = replace(rows[0], results=[], calls=[])
    assert value(benchmark, rows, "node_family") == 7 / 8


def link_sample(index: int, linked: bool) -> Sample:
    call = Part("call", task="link", target="t0")
    meta = {"modules": [f"a{index}", f"b{index}"]}
    return call_sample("link", index, [call], targets={"t0": Target("score", float(linked))}, meta=meta)


def test_link_auc_gives_a_missing_call_the_worst_probability(tmp_path: Path) -> None:
    benchmark, rows, scores = run(tmp_path, "link", [link_sample(i, i % 2 == 0) for i in range(6)])
    assert scores["link_auc"].value == 1.0
    silent = [replace(row, calls=[], results=[]) for row in rows]
    assert value(benchmark, silent, "link_auc") == 0.0
    rows[0] = replace(
        rows[0], results=[]
    )  # below every negative: 3 of 9 pairs lost, ties with the negatives' 0 count half
    assert value(benchmark, rows, "link_auc") == pytest.approx((6 + 1.5) / 9)
    assert value(benchmark, map(benchmark.constant, rows), "link_auc") == 0.5


def routing_samples() -> list[Sample]:
    ground = Part("call", task="ground", prompt="red 7", groundings=({"type": "region", "box_xyxy": [1, 1, 5, 5]},))
    seg = Part("call", task="seg", prompt="red 7")
    return [
        call_sample("routing", 0, [ground]),
        call_sample("routing", 1, [ground, seg]),
        answer_sample("routing", 2, "three"),
        call_sample("routing", 3, [seg]),
    ]


def test_routing_and_parse_failures(tmp_path: Path) -> None:
    benchmark, rows, scores = run(tmp_path, "routing", routing_samples())
    assert [scores[name].value for name in benchmark.metrics[:4]] == [1.0, 1.0, 1.0, 0.0]
    assert scores["two_calls"].na and scores["two_calls"].n == 0, "no call of these has a result to judge"
    extra = {"task": "seg", "prompt": "red 7", "groundings": []}
    rows[0] = replace(rows[0], calls=[extra, *rows[0].calls])  # 0 right of 2, 1 expected
    rows[1] = replace(rows[1], calls=rows[1].calls[:1], errors=[{"kind": "unclosed", "message": "x"}])  # fails: 0 of 2
    rows[2] = replace(rows[2], finish_reason="length")  # fails, no calls
    scores = benchmark.score(rows)
    assert scores["routing_precision"].value == pytest.approx(1 / 5)
    assert scores["routing_recall"].value == pytest.approx(1 / 4)
    assert scores["routing_f1"].value == pytest.approx(2 / 9)
    assert scores["parse_failure"].value == 0.5
    constant = benchmark.score(map(benchmark.constant, rows))
    assert 0 < constant["routing_f1"].value < 1


def quickstart_samples(name: str, split: str, number: int) -> list[Sample]:
    made = [{"draw": make_draw, "edit": make_edit}[name](split, index, 0) for index in range(number)]
    return [Sample(record.key, record, members) for record, members in made]


@pytest.fixture
def quickstart_data(tmp_path: Path) -> Path:
    (tmp_path / "manifest.json").write_text(json.dumps({"seed": 0}))
    return tmp_path


def test_drawings_are_judged(quickstart_data: Path) -> None:
    samples = quickstart_samples("draw", "test", 20)
    benchmark, rows, scores = run(quickstart_data, "draw", samples, quickstart_samples("draw", "val", 5))
    score = scores["draw_recognised"]
    assert score.value >= 0.95  # the judge's own limit on real renderings
    assert "held-out real renderings" in score.protocol
    swapped = [replace(row, results=rows[(i + 1) % 20].results) for i, row in enumerate(rows)]
    assert value(benchmark, swapped, "draw_recognised") == 0.0
    black = encode_image(torch.zeros(3, 32, 32, dtype=torch.uint8))
    empty = [replace(row, results=[{"type": "image", "png": black}]) for row in rows]
    assert value(benchmark, empty, "draw_recognised") == 0.0
    assert value(benchmark, map(benchmark.constant, rows), "draw_recognised") <= 0.1


def test_edits_are_judged(quickstart_data: Path) -> None:
    benchmark, rows, scores = run(quickstart_data, "edit", quickstart_samples("edit", "test", 20))
    assert scores["edit_right"].value >= 0.9
    unchanged = benchmark.score(map(benchmark.constant, rows))["edit_right"]
    assert unchanged.value == 0.0
    assert unchanged.parts["untouched"].value == 1.0
    repainted = []
    for row in rows:
        assert row.results[0] is not None
        image = decode_image(row.results[0]["png"])
        bright = (image.int() + 40).clamp(max=255).to(torch.uint8)  # the right edit, and everything else too
        repainted.append(replace(row, results=[{"type": "image", "png": encode_image(bright)}]))
    assert benchmark.score(repainted)["edit_right"].parts["untouched"].value == 0.0


def test_two_calls_are_judged_from_end_to_end(quickstart_data: Path) -> None:
    """Orders of two things, as the quickstart has them: both calls right, and both results."""
    made = [make_routing(None, "test", index, 0) for index in range(3, 120, 10)]  # type: ignore[arg-type]
    samples = [Sample(record.key, record, members) for record, members in made]
    benchmark, rows, scores = run(quickstart_data, "routing", samples)
    score = scores["two_calls"]
    assert score.n == 12 and score.value >= 0.8, "the judge's own limit on real edits"
    assert scores["two_calls"].parts["both calls"].value == 1.0
    pairs = [name for name in score.parts if ", then " in name]
    assert len(pairs) > 3 and sum(score.parts[name].n for name in pairs) == 12
    exchanged = [replace(row, results=row.results[::-1]) for row in rows]
    assert value(benchmark, exchanged, "two_calls") < 0.2
    alone = benchmark.score([replace(row, results=[row.results[0], None]) for row in rows])["two_calls"]
    assert (alone.value, alone.parts["second result"].value) == (0.0, 0.0) and alone.parts["first result"].value >= 0.8
    swapped = benchmark.score([replace(row, calls=row.calls[::-1]) for row in rows])["two_calls"]
    assert swapped.value == swapped.parts["both calls"].value == 0.0
    assert value(benchmark, [replace(row, finish_reason="length") for row in rows], "two_calls") == 0.0
    assert value(benchmark, map(benchmark.constant, rows), "two_calls") == 0.0


def chained(index: int) -> Sample:
    """Make the red 7 green, then the 3 blue, the second on the first's result."""
    rng = np.random.default_rng(index)
    scene = draw_scene([(7, "red"), (3, "yellow")], "test", 0, rng)
    places = {item.digit: place for place, item in enumerate(scene.digits)}
    first = scene.recoloured(places[7], "green", rng)
    pictures = [first, first.recoloured(places[3], "blue", rng)]
    refers = ({"type": "result", "call_index": 0},)
    calls = [
        Part("call", task="edit", prompt="red 7 green", target="t0"),
        Part("call", task="edit", prompt="3 blue", groundings=refers, target="t1"),
    ]
    members = {f"t{place}.png": png(picture.pixels()) for place, picture in enumerate(pictures)}
    image = torch.from_numpy(scene.pixels().transpose(2, 0, 1).copy())
    return make_sample(
        "routing",
        index,
        calls,
        meta={"objects": object_meta(scene)},
        targets={name.removesuffix(".png"): Target("image", file=name) for name in members},
        members=members,
        image=image,
    )


def test_the_second_call_is_judged_on_what_the_first_one_made(quickstart_data: Path) -> None:
    samples = [chained(index) for index in range(6)]
    benchmark, rows, scores = run(quickstart_data, "routing", samples)
    assert scores["two_calls"].value >= 0.8
    forgotten = []
    for row, sample in zip(rows, samples, strict=True):
        png_of_scene = base64.b64encode(sample.members["image.png"]).decode()
        before = replace(row, results=[{"type": "image", "png": png_of_scene}, row.results[1]])
        assert value(benchmark, [before], "two_calls") == 0.0, "the first edit was not made"
        assert row.results[0] is not None
        forgotten.append(replace(row, results=[row.results[0], row.results[0]]))
    assert value(benchmark, forgotten, "two_calls") == 0.0
    rng = np.random.default_rng(9)
    alone = []  # the second edit of the picture as it was before the first
    for index, row in enumerate(rows):
        scene = draw_scene([(7, "red"), (3, "yellow")], "test", 0, np.random.default_rng(index))
        place = next(place for place, item in enumerate(scene.digits) if item.digit == 3)
        picture = png(scene.recoloured(place, "blue", rng).pixels())
        alone.append(
            replace(row, results=[row.results[0], {"type": "image", "png": base64.b64encode(picture).decode()}])
        )
    assert value(benchmark, alone, "two_calls") == 0.0
    elsewhere = [replace(row, calls=[row.calls[0], {**row.calls[1], "groundings": [{"type": "node"}]}]) for row in rows]
    assert value(benchmark, elsewhere, "two_calls") == 0.0, "it does not refer to the first"


def test_every_metric_of_the_table_has_a_benchmark(tmp_path: Path) -> None:
    metrics = [metric for item in quickstart_benchmarks(tmp_path).values() for metric in item.metrics]
    assert len(metrics) == len(set(metrics)) == 20
    with pytest.raises(ValueError, match="expected one of"):
        quickstart_benchmarks(tmp_path, "test", ["image_q"])
