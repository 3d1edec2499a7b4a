"""Rankings of sweeps: numbers by hand, gaps refused, and a page that shows all of it."""

import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from eval.__main__ import main
from eval.sweeps.page import ranking_table, write_page
from eval.sweeps.ranking import rank


def results(table: dict[str, list[float]]) -> dict[str, dict[str, object]]:
    """ "backbone pretraining" -> values of digits (fine_tune, probe) and boxes (fine_tune)."""
    columns = [("digits", "fine_tune"), ("digits", "probe"), ("boxes", "fine_tune")]
    cells = {}
    for tower, values in table.items():
        backbone, pretraining = tower.split()
        for (task, mode), value in zip(columns, values, strict=True):
            for seed, shift in ((0, -0.05), (1, 0.05)):  # the mean over seeds counts
                cell = {"backbone": backbone, "pretraining": pretraining, "task": task, "mode": mode, "seed": seed}
                cells[f"{tower}/{task}/{mode}/{seed}"] = {**cell, "value": value + shift}
    return cells


TABLE = {"conv scratch": [0.2, 0.5, 0.9], "conv trained": [0.6, 0.5, 0.7], "vit <b>": [0.4, 0.5, 0.8]}


def test_z_scores_ranks_and_correlations() -> None:
    ranking = rank(results(TABLE))
    step = math.sqrt(1.5)  # of three values evenly spaced, in standard deviations
    assert ranking.towers[0] in (("conv", "scratch"), ("conv", "trained"), ("vit", "<b>"))
    by_tower = dict(zip(ranking.towers, ranking.z.tolist(), strict=True))
    assert by_tower["conv", "trained"] == pytest.approx([step, 0, -step])
    assert by_tower["conv", "scratch"] == pytest.approx([-step, 0, step])
    assert by_tower["vit", "<b>"] == pytest.approx([0, 0, 0], abs=1e-9)
    assert np.isnan(ranking.correlation[1]).all() and ranking.correlation[0, 2] == pytest.approx(-1)
    assert ranking.agreement() == pytest.approx(-1)
    assert ranking.family(0) == pytest.approx({"conv": 0, "vit": 0}, abs=1e-9)


def test_the_best_tower_comes_first() -> None:
    ranking = rank(results({"a x": [0.1, 0.1, 0.1], "b x": [0.3, 0.3, 0.3], "c y": [0.2, 0.2, 0.2]}))
    assert [tower[0] for tower in ranking.towers] == ["b", "c", "a"]
    assert ranking.family(1)["y"] == pytest.approx(0, abs=1e-9)
    assert ranking.agreement() == pytest.approx(1)


def test_gaps_and_single_towers_are_refused() -> None:
    some = results(TABLE)
    del some["vit <b>/boxes/fine_tune/0"], some["vit <b>/boxes/fine_tune/1"]
    with pytest.raises(ValueError, match="vit, <b>, boxes, fine_tune is not measured"):
        rank(some)
    with pytest.raises(ValueError, match="expected two towers or more, got 1"):
        rank(results({"a x": [0.1, 0.1, 0.1]}))


def test_table_and_page_show_every_tower(tmp_path: Path) -> None:
    ranking = rank(results(TABLE))
    console = Console(record=True, width=160)
    console.print(ranking_table(ranking))
    assert "vit" in console.export_text()
    write_page(ranking, tmp_path / "deep" / "page.html", "towers & tasks")
    page = (tmp_path / "deep" / "page.html").read_text()
    assert "towers &amp; tasks" in page and "vit, &lt;b&gt;" in page and "<b>" not in page
    assert page.count("0.800") == 1 and "-1.00" in page and "http" not in page


def test_a_missing_grid_is_one_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["sweep", "--config", str(tmp_path / "none.yaml"), "--out", str(tmp_path)]) == 2
    assert "none.yaml" in capsys.readouterr().err
