"""What a run shows: throughput against a measured peak, progress, a trace, and answers to held-out samples."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from data.packing import pack
from tests.tiny import rendered, tiny_generalist, training_arguments, write_shard
from train import main
from training.callbacks import StepProgress
from training.callbacks.progress import figures
from training.flops import Arithmetic, measure_peak


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps with everything that shows something."""
    root = tmp_path_factory.mktemp("callbacks")
    shard = write_shard(root / "shards")
    arguments = training_arguments(root / "run", shard, 4)
    callbacks = [
        {"class_path": "training.callbacks.Throughput", "init_args": {"every_n_steps": 2}},
        {"class_path": "training.callbacks.ProfileSteps", "init_args": {"first": 2, "steps": 1}},
        {"class_path": "training.callbacks.SamplePredictions", "init_args": {"count": 9, "max_new_tokens": 4}},
        {"class_path": "training.callbacks.StepProgress", "init_args": {"every_n_seconds": 0.0}},
    ]
    main(
        [
            *arguments,
            f"--trainer.callbacks={json.dumps(callbacks)}",
            f"--data.init_args.val_sources=[{{path: {shard}}}]",
            "--trainer.limit_val_batches=2",
            "--trainer.val_check_interval=4",
            "--trainer.check_val_every_n_epoch=null",
            "--trainer.num_sanity_val_steps=0",
            "--trainer.log_every_n_steps=1",
            "--trainer.enable_progress_bar=true",
        ]
    )
    return root / "run"


def test_throughput_is_logged(finished: Path) -> None:
    (path,) = (finished / "csv").rglob("metrics.csv")
    text = path.read_text()
    names, rows = text.splitlines()[0].split(","), text.splitlines()[1:]
    last = {name: [row.split(",")[i] for row in rows if row.split(",")[i]] for i, name in enumerate(names)}
    assert 0 < float(last["speed/mfu"][-1]) < 1
    assert float(last["speed/useful_tokens_per_second"][-1]) > 0
    assert 0 <= float(last["data/unused_room"][-1]) < 1


def test_a_trace_is_written(finished: Path) -> None:
    trace = json.loads((finished / "profile" / "rank0.json").read_text())
    assert any("aten::" in event.get("name", "") for event in trace["traceEvents"])
    assert "Self CPU" in (finished / "profile" / "rank0.txt").read_text()


def test_answers_to_held_out_samples_are_shown(finished: Path) -> None:
    page = (finished / "samples" / "step-00000004.html").read_text()
    assert page.count("<article") == 9 and page.count(">answered<") == 9 and "<svg" in page


def test_samples_need_held_out_data(tmp_path: Path) -> None:
    arguments = training_arguments(tmp_path / "run", write_shard(tmp_path / "shards"), 1)
    callbacks = [{"class_path": "training.callbacks.SamplePredictions"}]
    with pytest.raises(ValueError, match=r"expected data\.init_args\.val_sources"):
        main([*arguments, f"--trainer.callbacks={json.dumps(callbacks)}"])


def test_progress_is_told_in_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"train/token": torch.tensor(1.25), "speed/useful_tokens_per_second": 5312.4, "data/unused_room": 0.031}
    assert figures(values | {"speed/mfu": 0.412}) == "loss 1.250  5,312 tokens/s  padding 3%  MFU 41%"
    progress = StepProgress(every_n_seconds=0.0)
    progress.console = Console(file=io.StringIO())

    class Trainer:
        global_step, max_steps, callback_metrics = 3, 10, values

    progress.on_train_start(Trainer(), None)  # type: ignore[arg-type]
    progress.on_train_batch_end(Trainer(), None, None, None, 2)  # type: ignore[arg-type]
    progress.disable()
    progress.on_train_batch_end(Trainer(), None, None, None, 3)  # type: ignore[arg-type]
    told = progress.console.file.getvalue()  # type: ignore[attr-defined]
    assert told.count("step 3/10  loss 1.250") == 1


def test_arithmetic_by_hand(tmp_path: Path) -> None:
    generalist = tiny_generalist(tmp_path)
    plan = generalist.plan()
    text = pack([rendered("text", plan), rendered("text", plan)], plan)
    length, hidden, inner, vocabulary, layers = text.segment_lengths[0], 32, 48, 640, 2
    weights = layers * (4 * hidden**2 + 3 * hidden * inner) + vocabulary * hidden
    attention = 3 * layers * 2 * 2 * hidden * length**2 / 2
    expected = 2 * (6 * weights * length + attention)
    assert Arithmetic(generalist).of(text) == pytest.approx(expected)
    frozen = tiny_generalist(tmp_path)
    for part in (frozen.language_model, frozen.encoders, frozen.heads):
        part.requires_grad_(False)
    assert Arithmetic(frozen).of(text) == pytest.approx(2 * (4 * weights * length + attention))
    image = pack([rendered("box", plan)], plan)
    assert Arithmetic(generalist).of(image) > Arithmetic(frozen).of(image) > 0


def test_a_peak_is_measured() -> None:
    assert 1e8 < measure_peak(torch.device("cpu"), torch.float32, (64, 64, 64), 0.01) < 1e13
