"""The trainers that are compared do the same work: on a tiny LLaVA, in this process."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.arms import ROOT, Outcome, Round
from benchmarks.environments import PACKAGES
from benchmarks.train_throughput import add_mfu, arms, check, compare, show_targets
from benchmarks.trainers.samples import Inputs, Padding, read_samples
from benchmarks.trainers.with_lightning import LightningWay
from benchmarks.trainers.with_ours import PACK, SwitchyardWay
from benchmarks.trainers.with_transformers import TransformersWay
from benchmarks.trainers.work import BATCH, Way, measure
from benchmarks.trainers.workload import SMALL, Workload, write_workload

TINY = Workload(
    vision={
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    },
    text={
        "vocab_size": 1024,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    },
    shortest=4,
    longest=60,
    median=16,
)
WARM_UP = BATCH


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainers")
    write_workload(folder, TINY, WARM_UP + 12 * BATCH)
    return folder


def test_every_way_computes_the_same_loss_of_the_same_samples(folder: Path) -> None:
    samples = read_samples(folder)[:13]  # the last batch is a short one
    ways: list[Way] = [
        TransformersWay(folder, "random", "32-true"),
        LightningWay(folder, "random", "32-true"),
        SwitchyardWay(folder, "packed", "32-true"),
    ]
    expected, *others = [way.loss(samples) for way in ways]
    assert others == pytest.approx([expected] * 2, rel=1e-6)
    assert ways[0].loss(samples[:12]) != pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "order"),
    [(TransformersWay, "random"), (LightningWay, "random"), (SwitchyardWay, "packed")],
)
def test_an_epoch_trains_on_every_sample_once(folder: Path, kind: type[Way], order: str) -> None:
    samples = read_samples(folder)
    way = kind(folder, order, "32-true")
    before = way.loss(samples)
    values = measure(way, samples, WARM_UP)
    assert values["useful_tokens"] == sum(len(sample.input_ids) for sample in samples[WARM_UP:])
    assert values["seconds"] > 0 and values["peak_mib"] > 100
    assert way.loss(samples) < before
    if kind is SwitchyardWay:
        assert (values["steps"], values["useful_percent"]) == (-(-values["useful_tokens"] // PACK), 100)
        assert values["operations"] > 0 and values["peak_operations_per_second"] > 0
    else:
        assert values["steps"] == 12
        assert values["useful_percent"] < 100


def test_grouping_by_length_pads_less(folder: Path) -> None:
    samples = read_samples(folder)
    random, grouped = (TransformersWay(folder, order, "32-true").train(samples) for order in ("random", "grouped"))
    assert grouped.positions < 0.85 * random.positions


def test_padding_counts_what_goes_through(folder: Path) -> None:
    samples, padding = read_samples(folder)[:3], Padding()
    batch = padding([item for item in Inputs(samples)])
    lengths = [len(sample.input_ids) for sample in samples]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert padding.positions == 3 * max(lengths) == batch["input_ids"].numel()
    assert (batch["labels"] != -100).sum().item() == sum(sample.num_learned for sample in samples)


def rounds(arm: str, *speeds: float, mib: float) -> list[Round]:
    values = [{"useful_tokens_per_second": speed, "seconds": 100 / speed, "peak_mib": mib} for speed in speeds]
    return [Round(arm, number, dict(item), 0.0) for number, item in enumerate(values)]


def test_figures_are_medians_of_ours_over_the_rivals() -> None:
    outcome = Outcome(
        [
            *rounds("hf_trainer_random", 10, 12, 11, mib=900),
            *rounds("hf_trainer_grouped", 22, 21, 23, mib=800),
            *rounds("ours", 33, 30, 36, mib=600),
        ]
    )
    for item in outcome.rounds:
        if item.arm == "ours":
            item.values |= {"operations": 500.0, "peak_operations_per_second": 330.0}
    add_mfu(outcome)
    ratios, fractions = compare(outcome)
    assert ratios == pytest.approx({"hf_trainer_random": 3.0, "hf_trainer_grouped": 1.5})
    assert fractions == pytest.approx({"mfu": 500 / (100 / 33) / 330, "peak_memory": 0.75})
    written = io.StringIO()
    show_targets(ratios, fractions, Console(file=written, width=100))
    assert written.getvalue().count("yes") == 3 and written.getvalue().count(" no ") == 1  # the share of the peak


def test_another_loss_is_refused() -> None:
    same = [Round(name, 0, {"loss": 2.0 * (1 + 1e-7 * place)}, 0.0) for place, name in enumerate(("ours", "a", "b"))]
    assert check(Outcome(same)) == 2.0
    with pytest.raises(RuntimeError, match=r"the same loss.*'c': 2\.001"):
        check(Outcome([*same, Round("c", 0, {"loss": 2.001}, 0.0)]))


def test_every_arm_has_a_script_and_an_environment(tmp_path: Path) -> None:
    for arm in arms(tmp_path, "epoch", "bf16-mixed"):
        assert (ROOT / "benchmarks" / arm.script).is_file()
        assert arm.environment is None or arm.environment in PACKAGES
    assert SMALL.image_tokens == 49
