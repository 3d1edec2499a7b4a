"""A refused command line says in a few lines which key is wrong, and what was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.checks.parser import plain
from training.cli import read_config

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "configs" / "quickstart" / "stage1_alignment.yaml"


def refusal(capsys: pytest.CaptureFixture[str], *settings: str, config: Path = MODEL) -> str:
    with pytest.raises(SystemExit) as stopped:
        read_config([str(MODEL.with_name("model.yaml")), str(config)], settings)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_misspelt_argument_is_named_with_what_was_meant(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    misspelt = tmp_path / "misspelt.yaml"
    text = MODEL.read_text()
    assert "\n    learning_rate: " in text
    misspelt.write_text(text.replace("\n    learning_rate: ", "\n    learning_rat: "))
    told = refusal(capsys, config=misspelt)
    assert "'learning_rat' is not accepted; did you mean 'learning_rate'" in told
    assert "model" in told and len(told.splitlines()) <= 6 and "usage:" not in told


def test_a_misspelt_flag_too(capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(capsys, "--trainer.max_stepz", "3")
    assert "--trainer.max_stepz" in told and "did you mean 'trainer.max_steps'" in told


def test_a_misspelt_key_of_the_file_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    misspelt = tmp_path / "misspelt.yaml"
    misspelt.write_text(MODEL.read_text().replace("max_steps:", "max_stepz:"))
    told = refusal(capsys, config=misspelt)
    assert "max_stepz" in told and len(told.splitlines()) <= 6


def test_what_is_all_frame_is_told_as_it_is() -> None:
    assert plain("Given value: 3") == "Given value: 3"
    assert plain("") == ""


def test_nothing_is_imported_for_a_message() -> None:
    message = "Problem with given class_path 'antigravity.Model':\n  Option 'x' is not accepted"
    assert plain(message, ["y"]) == message
