"""The model of demonstrations builds of either block, and is trained by ``train.py`` in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demonstrations.text_model import Block, Example, TextModel, answers, fit, make_tokenizer, train, write_examples
from models.build import build_generalist


@pytest.mark.parametrize("block", ["llama", "gemma3_text"])
def test_it_builds_of_either_block(tmp_path: Path, block: Block) -> None:
    model = TextModel(hidden_size=64, num_layers=2, block=block)
    vocab_size = make_tokenizer(tmp_path, ["one two three"] * 5, size=270)
    with torch.device("meta"):
        generalist = build_generalist(model.config(tmp_path, vocab_size))
    config = generalist.language_model.model.config
    assert config.model_type == block and config.head_dim == 32 and config.num_hidden_layers == 2


@pytest.mark.slow
def test_a_fit_leaves_a_checkpoint_that_answers_or_names_its_log(tmp_path: Path) -> None:
    model, asked = TextModel(hidden_size=64, num_layers=1, max_tokens=256, block="gemma3_text"), Example("a", "b b")
    write_examples(tmp_path / "data", "ask", [asked] * 20)
    vocab_size = make_tokenizer(tmp_path / "tokenizer", ["a b"] * 5, size=270)
    data = {"sources": [{"path": str(tmp_path / "data" / "ask-*.tar")}]}
    checkpoint = train(model, tmp_path / "tokenizer", vocab_size, data, 60, 0, tmp_path / "run")
    assert answers(checkpoint, [asked])[0].strip() == "b b"
    with pytest.raises(RuntimeError, match=r"status 2.*broken/train\.log"):
        fit({"model": {"class_path": "nowhere.Recipe"}, "data": {}}, 1, 0, tmp_path / "broken")
    assert "nowhere" in (tmp_path / "broken" / "train.log").read_text()
