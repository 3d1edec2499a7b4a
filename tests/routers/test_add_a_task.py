"""The worked example of docs/add_a_task.md does what it says: its files are written, run, trained and asked."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from inference.session import Session
from models.class_paths import check_class_paths
from train import main

PAGE = Path(__file__).parents[2] / "docs" / "add_a_task.md"
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files in a folder of their own, which is the working directory."""
    for _, name, text in BLOCK.findall(PAGE.read_text()):
        if name:
            (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_heads", None)


def test_a_new_task_and_its_head_are_trained_and_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (commands,) = [text.splitlines() for language, _, text in BLOCK.findall(PAGE.read_text()) if language == "sh"]
    assert commands == ["python make_data.py", "python train.py fit --config count.yaml", "python ask.py"]
    runpy.run_path("make_data.py", run_name="__main__")
    cli = main(["fit", "--config", "count.yaml", "--trainer.max_steps=2", "--trainer.accelerator=cpu"])
    assert {"train/loss_token", "train/loss_counts"} <= set(cli.trainer.logged_metrics)
    assert cli.model.weights["counts"] == 0.5, "the table's weight"
    runpy.run_path("ask.py", run_name="__main__")
    assert "()" in capsys.readouterr().out  # it was asked; two steps teach nothing

    import my_heads

    session = Session.from_pretrained("runs/count/checkpoint", extra_classes=["my_heads.CountHead"], device="cpu")
    vocabulary = session.plan.vocabulary
    vocabulary_ids = [vocabulary.open_ids["count"], vocabulary.anchor_id, vocabulary.close_ids["count"]]
    step = session.generalist.step
    written = iter([*vocabulary_ids, vocabulary.eos_id])

    def scripted(*arguments):
        output = step(*arguments)
        output.logits_last = torch.nn.functional.one_hot(torch.tensor([next(written)]), output.logits_last.shape[1])
        return output

    session.generalist.step = scripted
    from inference.conversation import Conversation

    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    (reply,) = session.generate([Conversation.ask("how many squares are there?", images=[image])])
    (result,) = reply.results
    assert isinstance(result, my_heads.CountResult) and 0 <= result.count <= 9 and not reply.errors


def test_a_class_of_ones_own_is_refused_where_nobody_allowed_it(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"class 'my_heads.CountHead' is not allowed"):
        check_class_paths({"heads": {"counts": {"class_path": "my_heads.CountHead"}}})
