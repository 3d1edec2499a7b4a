"""Every row of the catalogue on a few questions of our own in its official format."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from data.media import decode_media
from data.shards import Sample
from eval.benchmarks.benchmark import BenchmarkError, says
from eval.benchmarks.catalog import HIDDEN, CatalogBenchmark, MediaMembers, read_catalog
from eval.benchmarks.readers.speech import Slice
from eval.judges.judge import Judge, Template, Verdict
from eval.prediction import Prediction, silent
from tests.eval.benchmarks import captions_and_regions, choices, hub, judged, speech_and_graphs, visual_questions
from tests.eval.benchmarks.fixture import Fixture

ROWS = read_catalog()
FIXTURES: dict[str, Fixture] = {
    **visual_questions.FIXTURES,
    **choices.FIXTURES,
    **captions_and_regions.FIXTURES,
    **speech_and_graphs.FIXTURES,
    **hub.FIXTURES,
    **judged.FIXTURES,
}


SCORED = sorted(name for name, row in ROWS.items() if not row.get("hidden"))
TO_SERVERS = sorted(set(ROWS) - set(SCORED))
WITHOUT_CONSTANT = {
    "audiobench_qa", "chartqa_hub", "docvqa_hub", "infovqa_hub", "mathvista", "mmvet", "nocaps", "ocrbench",
    "ocrbench_hub", "okvqa_hub", "textvqa_hub", "vizwiz_hub", "vqav2_hub",
}  # fmt: skip


class GoldJudge(Judge):
    """Gives the highest grade to a reply that is the answer; of what it is asked to extract it makes nothing."""

    identity = "gold"

    def verdicts(self, template: Template, payloads: Sequence[Mapping[str, str]]) -> Iterator[Verdict]:
        for payload in payloads:
            top = "5" if "5" in template.text else "1.0"
            yield Verdict(top if payload["reply"] == payload.get("answer") else "0" if "answer" in payload else "")


def made(name: str, data: Path) -> CatalogBenchmark:
    folder = data / str(ROWS[name].get("folder", name))
    folder.mkdir(parents=True, exist_ok=True)
    FIXTURES[name].make(folder)
    for file, copy in FIXTURES[name].other.items():
        (folder / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / file, folder / copy)
    benchmark = CatalogBenchmark(name, ROWS[name], data)
    if benchmark.needs_judge:
        benchmark.judge = GoldJudge()
    return benchmark


def rows_of(benchmark: CatalogBenchmark) -> list[Prediction]:
    return [silent(benchmark.name, sample) for sample in benchmark.records()]


def test_every_row_has_a_fixture() -> None:
    assert sorted(FIXTURES) == sorted(ROWS)
    assert all(bool(item.again) != bool(item.no_ids) for item in FIXTURES.values()), "ids twice, or why there are none"


@pytest.mark.parametrize("name", SCORED)
def test_gold_scores_the_maximum_and_a_constant_what_it_should(name: str, tmp_path: Path) -> None:
    fixture = FIXTURES[name]
    benchmark = made(name, tmp_path)
    assert not benchmark.reader.missing
    rows = rows_of(benchmark)
    assert len(rows) == fixture.count
    assert all(row.reference["text"] or row.reference["calls"] for row in rows), "every question has a gold reply"
    scores = benchmark.score(map(benchmark.gold, rows))
    assert set(scores) == set(benchmark.metrics)
    for metric, score in scores.items():
        short = metric.removeprefix(f"{name}/")
        if short == "hits100":
            assert score.na.startswith("needs 100 pairs")
            continue
        best = 1.0 if score.higher_is_better and short not in ("yes_ratio", "unknown") else 0.0
        if short == "cider":
            assert score.value > 200  # no caption of several references reaches 1,000
        else:
            assert score.value == pytest.approx(fixture.gold.get(short, best)), metric
        assert score.n == fixture.count and score.protocol
    assert all(benchmark.right(benchmark.gold(row)) for row in rows) or "captions" in name or name == "nocaps"
    assert bool(benchmark.constant_na) == (name in WITHOUT_CONSTANT)
    if benchmark.constant_na:
        assert not fixture.constant
        with pytest.raises(BenchmarkError, match="no other answers"):
            benchmark.constant(rows[0])
        return
    constant = benchmark.score(benchmark.constant(row) for row in rows)
    for short, value in fixture.constant.items():
        assert constant[f"{name}/{short}"].value == pytest.approx(value), short
    main = scores[benchmark.metrics[0]]
    other = constant[benchmark.metrics[0]].value
    assert other < main.value if main.higher_is_better else other > main.value, "a constant is not as good as the gold"


@pytest.mark.parametrize("name", SCORED)
def test_a_reply_that_says_nothing_is_worth_nothing(name: str, tmp_path: Path) -> None:
    benchmark = made(name, tmp_path)
    cut = [Prediction(name, row.key, finish_reason="length", reference=row.reference) for row in rows_of(benchmark)]
    for metric, score in benchmark.score(cut).items():
        short = metric.removeprefix(f"{name}/")
        if short == "hits100":
            assert score.na.startswith("needs 100 pairs")
            continue
        if short == "unknown":
            assert score.value == 1.0
        elif short in ("mrr", "hits1", "hits3", "hits10", "i2t_r5", "i2t_r10", "t2i_r5", "t2i_r10"):
            assert score.value < 1.0 or short.endswith(("10", "5", "3"))  # ranks of chance among a handful
        elif score.higher_is_better:
            assert score.value == pytest.approx(0.0, abs=0.1) or short == "ap", metric
        else:
            assert score.value >= 0.99 or short == "yes_ratio", metric
    assert not any(benchmark.right(row) for row in cut)


def media_files(sample: Sample) -> Iterator[tuple[str, Path]]:
    assert isinstance(sample.members, MediaMembers)
    for item in sample.record.media.values():
        medium = sample.members._files[item.file]
        if medium.path is not None:
            yield item.file, medium.path / medium.name if isinstance(medium, Slice) else medium.path


@pytest.mark.parametrize("name", sorted(name for name in ROWS if not FIXTURES[name].no_media))
def test_media_decode_and_a_missing_one_is_named(name: str, tmp_path: Path) -> None:
    benchmark = made(name, tmp_path)
    samples = list(benchmark.records())
    for sample in samples[:3]:
        for item in sample.record.media.values():
            data = sample.members[item.file]
            if item.type != "video":  # the fixtures' videos are none
                decode_media(item, data)
    file, path = next(media_files(samples[0]))
    path.unlink()
    with pytest.raises(ValueError, match=path.stem):
        _ = samples[0].members[file]


@pytest.mark.parametrize("name", sorted(name for name in ROWS if FIXTURES[name].again is not None))
def test_an_id_that_is_there_twice_is_named(name: str, tmp_path: Path) -> None:
    benchmark = made(name, tmp_path)
    again = FIXTURES[name].again
    assert again is not None
    again(tmp_path / str(ROWS[name].get("folder", name)))
    with pytest.raises(BenchmarkError, match=r"again|every node once|expected a question for every"):
        list(benchmark.records())


@pytest.mark.parametrize("name", sorted(ROWS))
def test_missing_and_damaged_files_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"cannot be read|expected a table|expected a YAML"):
        list(CatalogBenchmark(name, ROWS[name], tmp_path).records())
    benchmark = made(name, tmp_path)
    for path in benchmark.reader.files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] + b"\xff\xfe{")
    with pytest.raises(BenchmarkError, match=str(tmp_path)):
        list(benchmark.records())


def test_scores_do_not_depend_on_the_order(tmp_path: Path) -> None:
    for name in ("mmbench", "pope", "coco_captions", "flickr30k_retrieval", "wn18rr", "reasonseg"):
        benchmark = made(name, tmp_path)
        rows = rows_of(benchmark)
        replies = [benchmark.gold(row) if i % 3 else benchmark.constant(row) for i, row in enumerate(rows)]
        forward, backward = benchmark.score(replies), benchmark.score(replies[::-1])
        for metric, score in forward.items():
            assert math.isclose(score.value, backward[metric].value, abs_tol=1e-12), metric


@pytest.mark.parametrize("name", TO_SERVERS)
def test_what_a_server_scores_is_not_scored_here(name: str, tmp_path: Path) -> None:
    benchmark = made(name, tmp_path)
    rows = rows_of(benchmark)
    assert len(rows) == FIXTURES[name].count and not any(row.reference["text"] for row in rows)
    scores = benchmark.score(rows)
    assert set(scores) == set(benchmark.metrics) and {score.na for score in scores.values()} == {HIDDEN}
    assert {score.n for score in scores.values()} == {len(rows)} and benchmark.constant_na == HIDDEN
    assert benchmark.submission is not None


@pytest.mark.parametrize("name", SCORED)
def test_a_reply_of_a_hundred_thousand_characters_is_read_and_scored(name: str, tmp_path: Path) -> None:
    benchmark = made(name, tmp_path)
    row = rows_of(benchmark)[-1]
    for text in ("A. yes, 12 of (B) käse\n" * 4_350, "x" * 100_000):
        long = says(row, text)
        assert benchmark.right(long) in (True, False)
        assert all(score.na or math.isfinite(score.value) for score in benchmark.score([long]).values())


@pytest.mark.parametrize("name", sorted(name for name in SCORED if ROWS[name].get("constant", {}).get("reader")))
def test_the_constant_reply_needs_the_answers_of_another_split(name: str, tmp_path: Path) -> None:
    benchmark = made(name, tmp_path)
    assert "chosen on" in benchmark.constant_about
    reader = benchmark._constant.reader
    assert reader is not None
    others = set(reader.files) - set(benchmark.reader.files)
    for path in others:
        path.unlink()
    again = CatalogBenchmark(name, ROWS[name], tmp_path)
    assert bool(again.constant_na) == bool(others)
    if others:
        assert "which is not here" in again.constant_na
