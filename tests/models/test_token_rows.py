"""New tokens beside a frozen vocabulary: exact for old tokens, trained alone, stored alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

from models.__main__ import main as models_main
from models.build import build_generalist
from models.checkpoint import load_checkpoint, save_checkpoint
from models.language import LanguageModel
from models.token_loss import supervised_rows
from models.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from routers.tasks import TaskTable
from tests.models.test_attention import GROUPED, LENGTHS, packed_inputs
from tests.tiny import TASKS, WORDS, tiny_config

FIRST, COUNT = 55, 9  # within a table of 61 rows, the last six of which pad it
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("llama", GROUPED | {"tie_word_embeddings": True}),
    "untied": ("llama", GROUPED | {"tie_word_embeddings": False}),
    "scaled and capped": (
        "gemma2",
        GROUPED | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4, "final_logit_softcapping": 3.0},
    ),
}


def extended(kind: str) -> LanguageModel:
    torch.manual_seed(0)
    model_type, config = KINDS[kind]
    return LanguageModel(model_type, config, new_tokens={"first": FIRST, "count": COUNT})


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_table_with_the_same_rows_gives_the_same(kind: str) -> None:
    """The oracle is transformers' own model with one table that holds old and new rows."""
    model = extended(kind)
    model_type, config = KINDS[kind]
    whole = LanguageModel(model_type, config | {"vocab_size": FIRST + COUNT})
    rows = model.new_tokens
    assert rows is not None and model.vocab_size == whole.vocab_size == FIRST + COUNT
    state = model.model.state_dict()
    output = rows.embedding if rows.output_embedding is None else rows.output_embedding
    for name, value in whole.model.state_dict().items():
        new = {"model.embed_tokens.weight": rows.embedding, "lm_head.weight": output}.get(name)
        value.copy_(state[name] if new is None else torch.cat([state[name][:FIRST], new.detach()]))
    ids, labels, positions = packed_inputs(FIRST + COUNT)
    assert (ids >= FIRST).any()
    positions_of, targets = supervised_rows(labels[0], LENGTHS)
    losses = []
    for item in (model, whole):
        states = item(item.embed(ids), positions, LENGTHS)
        losses.append(item.cross_entropy(states[positions_of], targets))
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(model.logits(states), whole.logits(states))
    table = whole.model.get_input_embeddings().weight.grad
    torch.testing.assert_close(rows.embedding.grad, table[FIRST:], atol=1e-5, rtol=1e-4)


def test_the_table_can_stay_frozen_while_the_rows_learn() -> None:
    model = extended("untied")
    model.model.requires_grad_(False)
    ids = torch.tensor([[FIRST, 3, FIRST + 2]])
    states = model(model.embed(ids), torch.arange(3)[None], [3])
    model.cross_entropy(states, torch.tensor([FIRST + 1, 4, 5])).backward()
    assert {name for name, value in model.named_parameters() if value.grad is not None} == {
        "new_tokens.embedding",
        "new_tokens.output_embedding",
    }


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_returns_the_rows(tied: bool, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    language_model = config["language_model"]
    vocabulary = language_model["config"]["vocab_size"]
    own = {**language_model["config"], "vocab_size": vocabulary - 4, "tie_word_embeddings": tied}
    rows = {"first": vocabulary - 4, "count": 4}
    config["language_model"] = {**language_model, "config": own, "new_tokens": rows}
    model = build_generalist(config)
    saved = save_checkpoint(model, config, tmp_path / "checkpoint")
    again = load_checkpoint(saved).state_dict()
    assert ("language_model.new_tokens.output_embedding" in again) != tied
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_new_rows_begin_among_the_old_and_differ() -> None:
    rows = extended("tied").new_tokens
    assert rows is not None
    similar = F.cosine_similarity(rows.embedding[0], rows.embedding[1:])
    assert (similar < 0.999).all() and torch.pdist(rows.embedding).min() > 0
    with pytest.raises(ValueError, match="first from 1 to 61 and count >= 1, got 62 and 1"):
        LanguageModel(*KINDS["tied"], new_tokens={"first": 62, "count": 1})


def test_an_empty_loss_still_reaches_the_rows() -> None:
    model = extended("untied")
    model.cross_entropy(torch.zeros(0, 32, requires_grad=True), torch.zeros(0, dtype=torch.long)).backward()
    rows = model.new_tokens
    assert rows is not None and rows.output_embedding is not None and rows.output_embedding.grad is not None


def test_the_command_extends_a_tokenizer_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = train_tokenizer([WORDS] * 4, 300, TaskTable.from_dict({"tasks": []}))
    save_tokenizer(plain, tmp_path / "plain")
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(TASKS))
    arguments = ["tokenizer", str(tmp_path / "plain"), "--tasks", str(tmp_path / "tasks.yaml")]
    assert models_main([*arguments, "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    tokenizer = load_tokenizer(tmp_path / "out")
    assert f"first: {len(plain)}, count: {len(tokenizer) - len(plain)}" in told
    assert tokenizer.convert_tokens_to_ids("<ground>") >= len(plain)
    plain.chat_template = None
    save_tokenizer(plain, tmp_path / "bare")
    assert models_main(["tokenizer", str(tmp_path / "bare"), *arguments[2:], "--out", str(tmp_path / "x")]) == 2
    assert "chat template" in capsys.readouterr().err and not (tmp_path / "x").exists()
