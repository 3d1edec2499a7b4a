"""Comparisons: paired, refused where protocols differ, and right about what is chance."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from eval.__main__ import main
from eval.benchmarks.quickstart import quickstart_benchmarks
from eval.compare import chat_benchmarks, chat_gate, compare_logs, label_runs
from eval.log import LogError, read_log
from eval.metrics.pairing import holm, paired_difference
from eval.metrics.statistics import Contributions
from eval.prediction import Prediction
from tests.eval.conftest import answer_sample, box_sample, gold, write_log, write_shards


def contributions(
    values: list[float], clusters: list[str] | None = None, keys: list[str] | None = None
) -> Contributions:
    names = keys or [f"k{i}" for i in range(len(values))]
    return Contributions(names, clusters or names, np.array(values, dtype=np.float64)[:, None])


def test_the_difference_of_means_by_hand() -> None:
    found = paired_difference(contributions([0, 0, 1, 1]), contributions([1, 0, 1, 1]))
    changes = np.array([1, 0, 0, 0])
    error = changes.std(ddof=1) / 2
    assert (found.first, found.second, found.value, found.n) == (0.5, 0.75, 0.25, 4)
    assert (found.rose, found.fell) == (1, 0)
    assert [found.low, found.high] == pytest.approx([0.25 - 1.959964 * error, 0.25 + 1.959964 * error])
    assert found.p == pytest.approx(2 * norm.sf(0.25 / error))
    clustered = paired_difference(contributions([0] * 4, list("aabb")), contributions([1, 1, 0, 0]))
    assert clustered.high is not None and clustered.high - 0.5 == pytest.approx(
        1.959964 * 0.5
    )  # two clusters: +1/2, -1/2
    same = paired_difference(contributions([0, 1]), contributions([0, 1]))
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1.0)


def test_pairs_are_those_that_both_have() -> None:
    first = contributions([1, 1, 0], keys=["a", "b", "c"])
    found = paired_difference(first, contributions([0, 0, 0, 1], keys=["c", "b", "x", "y"]))
    assert (found.n, found.first, found.second) == (2, 0.5, 0.0)
    assert (found.missing_first, found.missing_second) == (2, 1)
    with pytest.raises(ValueError, match="share samples"):
        paired_difference(first, contributions([1], keys=["z"]))
    single = paired_difference(first, contributions([1], keys=["a"]))
    assert single.low is None and single.p is None


def test_other_numbers_are_resampled_together() -> None:
    generator = np.random.default_rng(0)
    words = generator.integers(5, 15, 200).astype(np.float64)
    edits = generator.binomial(words.astype(int), 0.3).astype(np.float64)
    better = edits - (generator.random(200) < 0.3) * (edits > 0)

    def rate(rows: np.ndarray) -> float:
        return float(rows[:, 0].sum() / rows[:, 1].sum())

    names = [f"k{i}" for i in range(200)]
    first, second = (Contributions(names, names, np.stack([e, words], 1), rate) for e in (edits, better))
    found = paired_difference(first, second)
    assert found.value == pytest.approx((better - edits).sum() / words.sum())
    assert found.low is not None and found.high is not None and found.low < found.value < found.high < 0
    # Runs vary together, so their difference is known far better than either.
    alone = np.std([rate(first.columns[generator.integers(200, size=200)]) for _ in range(300)])
    assert found.high - found.low < 2 * alone
    assert found.rose is None and found.p == pytest.approx(1 / 1000)


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path, list[Prediction]]:
    samples = [answer_sample("image_qa", i, str(i % 4)) for i in range(12)]
    for split in ("test", "val"):
        write_shards(tmp_path, split, "image_qa", samples)
    benchmarks = quickstart_benchmarks(tmp_path, "test", ["image_qa"])
    rows = [gold(sample, "image_qa") for sample in samples]
    worse = [replace(row, text="no") if i < 6 else row for i, row in enumerate(rows)]
    first = write_log(tmp_path / "first" / "log.jsonl", benchmarks, rows)
    second = write_log(tmp_path / "second" / "log.jsonl", benchmarks, worse)
    return first, second, rows


def test_two_runs_are_compared(
    runs: tuple[Path, Path, list[Prediction]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, _ = runs
    out = tmp_path / "differences.json"
    assert main(["compare", str(first), str(second), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "-0.500" in shown and "-0.750 to -0.250" in shown and "second" in shown
    (entry,) = json.loads(out.read_text())
    assert (entry["difference"], entry["n"], entry["baseline"], entry["other"]) == (-0.5, 12, "first", "second")
    assert entry["high"] < 0 and entry["p_holm"] == entry["p"] and entry["complete"]
    (found,) = compare_logs([first, second])
    assert found.better is False
    (back,) = compare_logs([second, first])
    assert back.better is True
    assert main(["compare", str(first)]) == 2
    assert "two logs or more" in capsys.readouterr().err


def rewritten(path: Path, out: Path, *changes: tuple[str, str]) -> Path:
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    out.write_text(text)
    return out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"constrained":false', '"constrained":true', "constrained decoding: False and True"),
        ('"data_sha256":{"image_qa":"', '"data_sha256":{"image_qa":"0', "data_sha256"),
        (
            '"versions":{}',
            '"versions":{},"protocols":{"image_qa":"quickstart/image_qa@2"}',
            "protocol: None and 'quickst",
        ),
    ],
)
def test_different_protocols_are_refused(
    runs: tuple[Path, Path, list[Prediction]], tmp_path: Path, old: str, new: str, message: str
) -> None:
    first, second, _ = runs
    other = rewritten(second, tmp_path / "other.jsonl", (old, new))
    with pytest.raises(LogError, match=f"{message}.*scores of different protocols are not compared"):
        compare_logs([first, other])


def test_other_media_are_refused_unless_a_control_changed_them(
    runs: tuple[Path, Path, list[Prediction]], tmp_path: Path
) -> None:
    benchmarks = quickstart_benchmarks(tmp_path, "test", ["image_qa"])
    shown = [replace(row, media_sha256={"image": row.key}) for row in runs[2]]
    changed = [replace(row, media_sha256={"image": "other"}) if row.key.endswith("003") else row for row in shown]
    first = write_log(tmp_path / "a.jsonl", benchmarks, shown)
    with pytest.raises(LogError, match="other media to 1 samples, such as 'image_qa_003'"):
        compare_logs([first, write_log(tmp_path / "b.jsonl", benchmarks, changed)])
    compare_logs([first, write_log(tmp_path / "c.jsonl", benchmarks, changed, control="shuffled")])


def test_incomplete_runs_are_marked_and_nothing_in_common_is_refused(
    runs: tuple[Path, Path, list[Prediction]], tmp_path: Path
) -> None:
    benchmarks = quickstart_benchmarks(tmp_path, "test", ["image_qa"])
    (found,) = compare_logs([runs[0], write_log(tmp_path / "part.jsonl", benchmarks, runs[2][:5])])
    assert not found.complete and found.difference is not None and found.difference.n == 5
    nothing = rewritten(runs[1], tmp_path / "none.jsonl", ('"benchmark":"image_qa"', '"benchmark":"caption"'))
    with pytest.raises(LogError, match="benchmarks in common"):
        compare_logs([runs[0], nothing])
    assert label_runs([read_log(path) for path in runs[:2]]) == ["first", "second"]


def test_the_gate_looks_at_answers_in_words_and_fails_where_they_became_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = {
        "image_qa": [answer_sample("image_qa", i, str(i % 4)) for i in range(12)],
        "box": [box_sample(i, [2.0, 2.0, 12.0, 12.0]) for i in range(12)],
    }
    for name, own in samples.items():
        for split in ("test", "val"):
            write_shards(tmp_path, split, name, own)
    benchmarks = quickstart_benchmarks(tmp_path, "test", list(samples))
    rows = {name: [gold(sample, name) for sample in own] for name, own in samples.items()}
    silent = {name: [replace(row, text="no", results=[]) for row in own] for name, own in rows.items()}
    logs = {
        name: write_log(tmp_path / name / "log.jsonl", benchmarks, image_qa + box)
        for name, image_qa, box in (
            ("before", rows["image_qa"], silent["box"]),
            ("after", rows["image_qa"], rows["box"]),
            ("forgot", silent["image_qa"][:6] + rows["image_qa"][6:], rows["box"]),
            ("slipped", silent["image_qa"][:1] + rows["image_qa"][1:], rows["box"]),
        )
    }
    assert chat_benchmarks(read_log(logs["after"])) == ["image_qa"]
    assert [item.metric for item in chat_gate(logs["before"], [logs["after"]])] == ["image_qa"]
    for name, status in (("after", 0), ("forgot", 1), ("slipped", 0)):
        assert main(["compare", str(logs["before"]), str(logs[name]), "--gate"]) == status, name
        assert ("worse: image_qa" in capsys.readouterr().out) == bool(status)
    assert main(["compare", str(logs["forgot"]), str(logs["before"]), "--gate"]) == 0, "better is not worse"
    for name, words in (("after", "not worse"), ("forgot", "worse: image_qa")):
        page = tmp_path / f"{name}.html"
        assert main(["report", str(logs[name]), "--out", str(page), "--before", str(logs["before"])]) == 0
        text = page.read_text()
        assert f">{words}</span> than before" in text and "Chat questions, before and after" in text
        assert ("1 of 1" if name == "after" else "0 of 1") in text
    lone = {"box": quickstart_benchmarks(tmp_path, "test", ["box"])["box"]}
    boxes = write_log(tmp_path / "boxes.jsonl", lone, rows["box"])
    assert main(["compare", str(logs["before"]), str(boxes), "--gate"]) == 2
    assert "expected answers in words" in capsys.readouterr().err
