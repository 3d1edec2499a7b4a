"""The made worlds of the demonstrations of encoders and adapters are what their words say."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from data.shards import expand, read_samples
from demonstrations import scene_tower
from demonstrations.encoders import prompt_gate, region_tokens
from layers.layout import Layout
from models.adapters.lora import Lora
from models.adapters.prompt_gate import PromptGate
from models.language import LanguageModel
from training.towers.data import TowerPlan, load_items
from training.towers.objectives import Encode, TowerBatch


def test_pairs_of_the_test_are_new_and_their_words_are_not() -> None:
    assert set(prompt_gate.SEEN) | set(prompt_gate.UNSEEN) == set(prompt_gate.PAIRS)
    for pairs in (prompt_gate.SEEN, prompt_gate.UNSEEN):
        assert {first for first, _ in pairs} == {second for _, second in pairs} == set(prompt_gate.KINDS)
    train = {phrase for phrases, _ in prompt_gate.PHRASES.values() for phrase in phrases}
    test = {phrase for _, phrases in prompt_gate.PHRASES.values() for phrase in phrases}
    words = set(chain(*(text.split() for text in (*train, *prompt_gate.JOINS[0]))))
    assert not train & test and not set(prompt_gate.JOINS[0]) & set(prompt_gate.JOINS[1])
    assert all(set(text.split()) <= words for text in (*test, *prompt_gate.JOINS[1]))
    rng = np.random.default_rng(0)
    asked = prompt_gate.instruction(("count", "voice"), True, rng)
    assert asked.startswith("first ") and " and after that " in asked


def test_answers_come_in_the_order_asked_for() -> None:
    clip = prompt_gate.Clip(np.zeros(1), (3, 1), "low", "m1")
    reply = clip.answer(("translate", "count"))
    assert reply == "drei eins ; 2" and clip.answer(("voice",)) == "low"
    assert all(prompt_gate.follows(text, ("translate", "count")) for text in (reply, "neun ; 1"))
    for other in (("count", "translate"), ("transcribe", "count"), ("translate",)):
        assert not prompt_gate.follows(reply, other)
    assert not prompt_gate.follows(" ; 2", ("translate", "count"))


def test_the_gate_has_the_parameters_of_half_the_updates() -> None:
    counts = {}
    config = prompt_gate.SpeechReader().config(Path("tokenizer"), 100)["language_model"]
    for arm, given in prompt_gate.UPDATES.items():
        gate = PromptGate(**given["prompt_gate"]) if "prompt_gate" in given else None
        model = LanguageModel(**config, lora=Lora(**given["lora"]), prompt_gate=gate)
        counts[arm] = prompt_gate.trained_parameters(model)
    assert counts["gate"] == pytest.approx(counts["plain"], rel=0.005)
    assert counts["half"] * 2 == counts["plain"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene_tower, "COUNTS", {"train": 6})
        scene_tower.write_scenes(folder, 0)
    return folder


def test_scenes_are_named_as_they_are_captioned(scenes: Path) -> None:
    torch.manual_seed(0)
    tower = scene_tower.tower()
    paths = expand(str(scenes / "train" / "*.tar"))
    items, bad = load_items(paths, TowerPlan(tower.processor, scene_tower.NamedRule()), None)
    texts = [sample.record.messages[-1].content[0].text for sample in read_samples(paths)]
    assert bad == 0 and [scene_tower.caption(item.target) for item in items] == texts
    for item in items:
        shown = set(scene_tower.names_of_cells(item.target).tolist())
        assert shown - {scene_tower.NOTHING, scene_tower.IGNORED} == set(scene_tower.names_of(item.target).tolist())
    words = region_tokens.word_ids(texts)
    assert [" ".join(region_tokens.WORDS[word] for word in row if word) for row in words.tolist()] == [
        text.replace(",", "") for text in texts
    ]

    objective = scene_tower.NamedRegions()
    batch = TowerBatch(
        [item.inputs for item in items], Layout([item.layout for item in items]), [i.target for i in items], [""] * 6
    )
    outcome = objective(Encode(tower, batch.layout), batch)
    assert set(outcome.losses) == set(objective.loss_weights)
    torch.stack([term.total for term in outcome.losses.values()]).sum().backward()
    assert all(p.grad is not None for name, p in tower.named_parameters() if not name.startswith("detector."))


def test_tokens_of_cells_of_regions_and_of_both(scenes: Path) -> None:
    torch.manual_seed(0)
    images = scene_tower.images_of(scene_tower.tower(), scenes, "train", "random")
    counts = {}
    for name, used in (("cells", (True, False)), ("regions", (False, True)), ("both", (True, True))):
        decoder = region_tokens.UnifiedDecoder(*used).eval()
        whole, tokens = decoder.images(images.cells, images.regions)
        assert whole.shape == (6, scene_tower.WIDTH)
        counts[name] = tokens.shape[1]
        assert decoder.chosen(*images.names()).shape == tokens.shape[:2]
    assert counts == {"cells": 64, "regions": 8, "both": 72}
    squares = region_tokens._squares()
    assert squares[9].tolist() == [1 / 8, 1 / 8, 2 / 8, 2 / 8] and squares.shape == (64, 4)
