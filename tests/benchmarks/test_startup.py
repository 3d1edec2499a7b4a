"""How long a command takes, or until it says that something is over."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from benchmarks.startup import seconds_until
from benchmarks.steps.first_step import SAID, FirstStep

TALKS = "import time; print('over', flush=True); time.sleep(0.6); print('over')"


def test_the_clock_stops_at_the_line_or_at_the_end() -> None:
    command = [sys.executable, "-S", "-c", TALKS]
    until_line, until_end = seconds_until(command, "over"), seconds_until(command)
    assert 0 < until_line < until_end
    assert until_end >= 0.6


@pytest.mark.parametrize(
    ("code", "said", "message"),
    [("import sys; sys.exit('broken')", None, "ended with 1:\nbroken"), ("print('x')", "y", "expected the line 'y'")],
)
def test_a_command_that_fails_is_told(code: str, said: str | None, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        seconds_until([sys.executable, "-S", "-c", code], said)


def test_the_first_step_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        max_steps=3, accelerator="cpu", logger=False, callbacks=[FirstStep()], default_root_dir=tmp_path, **quiet
    )
    trainer.fit(BoringModel())
    assert capsys.readouterr().out.splitlines().count(SAID) == 1
