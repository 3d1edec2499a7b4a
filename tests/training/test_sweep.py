"""The sweep: what is measured once is not measured again, probes leave the tower alone, towers are loaded strictly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from layers.layout import ItemLayout, Layout
from tests.training.media import tiny_vision, write_shards
from training.sweeps import runner as sweeping
from training.sweeps.runner import read_sweep, run_sweep
from training.towers import TowerRecipe, load_tower, save_tower
from training.towers.data import TowerData
from training.towers.objectives import TowerBatch
from training.towers.scenes import DenseSceneObjective
from training.towers.views import TwoViewObjective

SCENES = "training.towers.scenes.DenseSceneObjective"


@pytest.fixture
def grid(tmp_path: Path) -> dict[str, Any]:
    shards = write_shards(tmp_path / "shards", "image", 12)
    arguments = {"model_name": "resnet10t", "image_size": 32, "stride": 4, "hidden_size": 16, "out_indices": [1, 2]}
    arguments |= {"model_args": {"channels": [16, 16, 16, 16], "stem_width": 8}, "norm_groups": 2}
    data = {"train": shards, "steps": 2, "batch_size": 4}
    return {
        "backbones": {"small": {"class_path": "encoders.vision.TimmEncoder", "init_args": arguments}},
        "pretraining": {
            "scratch": None,
            "views": {"objective": {"class_path": "training.towers.views.TwoViewObjective"}, **data},
        },
        "tasks": {
            "colours": {
                "objective": {"class_path": SCENES, "init_args": {"weights": {"colour": 1.0}}},
                "metric": "colour_accuracy",
                "val": shards,
                **data,
            }
        },
        "modes": {"fine_tune": {}, "linear_probe": {"probe": True, "learning_rate": 0.01}},
    }


def _read(grid: dict[str, Any], path: Path) -> sweeping.Sweep:
    path.write_text(yaml.safe_dump(grid))
    return read_sweep(path)


def test_cells_are_measured_once_and_anew_when_their_settings_change(
    grid: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[tuple[str, bool]] = []
    train = sweeping._Runner._train

    def counted(self: Any, cell: Any, fit: Any, folder: Path, tower: Path | None, probe: bool) -> dict[str, float]:
        fits.append((cell.name if fit.metric else "pretraining", tower is not None))
        return train(self, cell, fit, folder, tower, probe)

    monkeypatch.setattr(sweeping._Runner, "_train", counted)
    told: list[tuple[str, bool]] = []
    out = tmp_path / "out"
    first = run_sweep(_read(grid, tmp_path / "grid.yaml"), out, "32-true", lambda name, done: told.append((name, done)))
    assert fits == [
        ("small/scratch/colours/fine_tune/0", False),
        ("small/scratch/colours/linear_probe/0", False),
        ("pretraining", False),
        ("small/views/colours/fine_tune/0", True),
        ("small/views/colours/linear_probe/0", True),
    ]
    assert [name for name, done in told if done] == list(first) == list(json.loads((out / "results.json").read_text()))
    assert all(0 <= cell["value"] <= 1 for cell in first.values())
    assert len(list(out.glob("towers/small-views-0-*/tower.safetensors"))) == 1

    fits.clear()
    grid["modes"]["linear_probe"]["learning_rate"] = 0.02
    again = run_sweep(_read(grid, tmp_path / "grid.yaml"), out, "32-true", lambda *_: None)
    assert [name for name, _ in fits] == [name for name in first if "linear_probe" in name]
    kept = "small/views/colours/fine_tune/0"
    assert again[kept] == first[kept]


def test_grids_that_are_none_are_refused_by_name(grid: dict[str, Any], tmp_path: Path) -> None:
    without = {**grid, "tasks": {"colours": {**grid["tasks"]["colours"], "metric": ""}}}
    with pytest.raises(ValueError, match="task 'colours': expected val and metric"):
        _read(without, tmp_path / "grid.yaml")
    with pytest.raises(ValueError, match="modez"):
        _read({**grid, "modez": 1}, tmp_path / "grid.yaml")
    unknown = {**grid, "tasks": {"colours": {**grid["tasks"]["colours"], "metric": "beauty"}}}
    with pytest.raises(ValueError, match=r"task 'colours': expected a metric of \[.*'colour_accuracy'.*, got 'beauty'"):
        run_sweep(_read(unknown, tmp_path / "grid.yaml"), tmp_path / "out", "32-true", lambda *_: None)


def _batch(recipe: TowerRecipe, shards: str) -> TowerBatch:
    data = TowerData(shards, shards, batch_size=4, plan=recipe.plan())
    data.setup("fit")
    return next(iter(data.val_dataloader()))


def test_a_probe_learns_on_standardised_features_of_a_frozen_tower(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, "image", 4)
    recipe = TowerRecipe(tiny_vision(), DenseSceneObjective(16), probe=True).train()
    assert not recipe.encoder.training and recipe.objective.training
    assert {name.split(".")[0] for name, p in recipe.named_parameters() if p.requires_grad} == {"objective"}
    seen: list[torch.Tensor] = []
    recipe.objective.read.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    recipe._compare(_batch(recipe, shards))
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0].std(0, correction=0), torch.ones(16), atol=1e-2, rtol=0)


def test_a_tower_of_another_shape_is_refused_and_nothing_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_tower(tiny_vision(), tmp_path / "tower.safetensors")
    torch.manual_seed(1)
    encoder = tiny_vision()
    recipe = TowerRecipe(encoder, DenseSceneObjective(16), init_from=str(tmp_path / "tower.safetensors"))
    written = load_file(tmp_path / "tower.safetensors")
    assert all(torch.equal(value, written[name]) for name, value in recipe.encoder.state_dict().items())

    save_file({**written, "norm.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    torch.manual_seed(2)
    fresh = tiny_vision()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    with pytest.raises(ValueError, match=r"of another shape \['norm.weight'\]"):
        load_tower(fresh, tmp_path / "other.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_a_view_finds_its_sibling_among_the_batch() -> None:
    """The loss by hand: cosine similarities over τ, a view's own left out, the sibling as the truth."""
    objective = TwoViewObjective(3, temperature=0.5)
    objective.project = torch.nn.Identity()
    features = [torch.tensor([[1.0, 0, 0], [0, 1, 0]]), torch.tensor([[0.8, 0.6, 0], [0, 0, 1.0]])]
    items = [{"pixel_values": torch.zeros(3, 8, 8, dtype=torch.uint8)}] * 2
    batch = TowerBatch(items, Layout([ItemLayout((1, 1), (8, 8))] * 2), [{}] * 2, ["a", "b"])
    outcome = objective.eval()(lambda items: features.pop(0), batch)
    vectors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.8, 0.6, 0], [0, 0, 1]])
    similar = vectors @ vectors.T / 0.5
    expected = 0.0
    for view, sibling in ((0, 2), (1, 3), (2, 0), (3, 1)):
        others = [i for i in range(4) if i != view]
        expected -= float(similar[view, sibling] - similar[view, others].logsumexp(0))
    torch.testing.assert_close(outcome.losses["views"].total, torch.tensor(expected))
    assert outcome.losses["views"].count == 4 and outcome.metrics["sibling_top1"] == (torch.tensor(2.0), 4)


def test_views_differ_and_keep_the_size() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (3, 24, 16), dtype=torch.uint8)
    first, second = (TwoViewObjective(4)._view(pixels) for _ in range(2))
    assert first.shape == second.shape == pixels.shape and first.dtype == torch.uint8
    assert not torch.equal(first, second)


def test_a_task_learns_only_what_it_weighs() -> None:
    assert DenseSceneObjective(4, weights={"colour": 1.0}).loss_weights == {
        "object": 0.0,
        "digit": 0.0,
        "colour": 1.0,
        "box": 0.0,
        "centre": 0.0,
    }
    with pytest.raises(ValueError, match=r"weights: expected some of .*, got \['beauty'\]"):
        DenseSceneObjective(4, weights={"beauty": 1.0})
