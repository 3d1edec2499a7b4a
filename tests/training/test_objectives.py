"""Stage 0: targets of every objective, and losses that fall when the features carry the answer."""

import io
import tarfile
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from data.media import decode_media
from encoders.graph import GraphProcessor, GraphTransformerEncoder
from encoders.speech import SpeechEncoder
from encoders.vision import ImageProcessor
from layers.layout import ItemLayout, Layout
from layers.media import Graph
from tests.training.media import COLOURS, make_record, scene, tiny_vision, write_shards
from training.callbacks import LAST_CHECKPOINT, ResumePoint
from training.towers import TOWER_FILE, TowerRecipe
from training.towers.data import TowerData, TowerItem, TowerLoader, TowerPlan
from training.towers.objectives import TextGraphObjective, TowerBatch, TowerObjective
from training.towers.scenes import DenseSceneObjective, SceneRule, centre_heat
from training.towers.speech import SpeechObjective, SpeechRule

TINY_WHISPER = {
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "num_mel_bins": 8,
    "max_source_positions": 50,
}


def test_scene_targets_name_the_visible_object() -> None:
    record, _ = scene("a", 3)
    processor = ImageProcessor((64, 64), (16, 16))  # twice the raster: a cell is 2x2 original pixels
    target = SceneRule(COLOURS)(record, processor.layout((32, 32)))
    assert target is not None
    cells = target["cells"].reshape(16, 16)
    for index, item in enumerate(record.meta["objects"]):
        x1, y1, x2, y2 = item["box_xyxy"]
        torch.testing.assert_close(target["boxes"][index], torch.tensor([x1, y1, x2, y2]) / 32)
        assert cells[int(y1 + y2) // 4, int(x1 + x2) // 4] == index + 1
        owned = (cells == index + 1).nonzero()
        assert owned[:, 0].min() >= y1 // 2 - 1 and owned[:, 1].max() <= x2 // 2 + 1
        assert COLOURS[int(target["colours"][index])] == item["colour"]
    assert cells[0, 0] == 0 and int((target["heat"] == 1).sum()) == 2
    with pytest.raises(ValueError, match=r"record 'a': expected colours .* got \['"):
        SceneRule(("mauve",))(record, processor.layout((32, 32)))
    empty = make_record("image", "b", (32, 32), "png", {})
    assert SceneRule(COLOURS)(empty, processor.layout((32, 32))) is None


def test_centre_heat_peaks_at_the_centre_of_the_box() -> None:
    heat = centre_heat(torch.tensor([[0.0, 0.25, 0.5, 0.75]]), 8, 16).reshape(8, 16)
    assert divmod(int(heat.argmax()), 16) == (4, 4) and heat[4, 4] == 1
    assert 0 < heat[4, 5] < 1 and heat[0, 15] < 1e-6


def _oracle_outcome(objective: TowerObjective, features: torch.Tensor, batch: TowerBatch):
    return objective.eval()(lambda items: features, batch)


def test_scene_metrics_are_perfect_for_perfect_features() -> None:
    """Features that hold the targets, read by an identity, score one everywhere and lose nearly nothing."""
    record, _ = scene("a", 5)
    layout = ImageProcessor((32, 32), (16, 16)).layout((32, 32))
    target = SceneRule(COLOURS)(record, layout)
    objective = DenseSceneObjective(11 + 7 + 4 + 1)
    with torch.no_grad():
        objective.read.weight.copy_(torch.eye(23))
        objective.read.bias.zero_()
    features = torch.zeros(256, 23)
    for cell, owner in enumerate(target["cells"].tolist()):
        features[cell, 0 if owner < 1 else 1 + int(target["digits"][owner - 1])] = 20
        features[cell, 11 if owner < 1 else 12 + int(target["colours"][owner - 1])] = 20
        features[cell, 18:22] = target["boxes"][max(owner, 1) - 1]
    features[:, 22] = torch.where(target["heat"] == 1, 20.0, -20.0)
    batch = TowerBatch([{}], Layout([layout]), [target], ["a"])
    outcome = _oracle_outcome(objective, features, batch)
    assert all(float(total.detach()) / count > 0.999 for total, count in outcome.metrics.values())
    assert all(float(term.total.detach()) / term.count < 1e-3 for term in outcome.losses.values())
    features[:, :11] = features[:, :11].roll(1, dims=1)
    worse = _oracle_outcome(objective, features, batch)
    assert float(worse.metrics["digit_accuracy"][0]) == 0 and worse.losses["digit"].total > 100


def test_transcripts_and_greedy_decoding() -> None:
    objective = SpeechObjective(4, alphabet=" ab")
    record = make_record("audio", "a", (3200,), "flac", {"transcript": "Ab ba"})
    labels = SpeechRule(" ab")(record, ItemLayout((10,), (3200,)))["labels"]
    assert labels.tolist() == [2, 3, 1, 3, 2]
    frames = torch.tensor([0, 2, 2, 3, 0, 1, 3, 0, 2, 2])
    assert objective.decode(torch.eye(4)[frames]) == "ab ba"
    assert objective.decode(torch.eye(4)[torch.tensor([2, 0, 2])]) == "aa"
    with pytest.raises(ValueError, match=r"record 'a': expected a transcript of ' a', got \['b'\]"):
        SpeechRule(" a")(record, ItemLayout((10,), (3200,)))


def test_ctc_equals_the_sum_over_alignments() -> None:
    """Three frames, transcript "ab": the alignments are counted by hand."""
    objective = SpeechObjective(3, alphabet="ab")
    with torch.no_grad():
        objective.classify.weight.copy_(torch.eye(3))
        objective.classify.bias.zero_()
    features = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    layout = ItemLayout((3,), (960,))
    batch = TowerBatch([{}], Layout([layout]), [{"labels": torch.tensor([1, 2]), "voices": torch.zeros(0)}], ["a"])
    outcome = _oracle_outcome(objective, features, batch)
    p = features.softmax(-1)
    paths = [(1, 1, 2), (1, 2, 2), (1, 2, 0), (1, 0, 2), (0, 1, 2)]
    likelihood = sum(p[0, a] * p[1, b] * p[2, c] for a, b, c in paths)
    torch.testing.assert_close(outcome.losses["ctc"].total, -likelihood.log(), atol=1e-5, rtol=1e-5)
    assert outcome.losses["ctc"].count == 2


def test_a_voice_counts_where_any_stretch_has_it() -> None:
    objective = SpeechObjective(2, alphabet="ab", voices={"low": ["m1", "m2"], "high": ["f1"]})
    rule = SpeechRule("ab", (frozenset({"m1", "m2"}), frozenset({"f1"})))
    layout = ItemLayout((10,), (3200,))

    def target(*voices: str) -> dict[str, torch.Tensor]:
        return rule(make_record("audio", "a", (3200,), "flac", {"transcript": "a", "voices": list(voices)}), layout)

    assert target("f1")["voices"].tolist() == [0, 1] and target("f1", "m2")["voices"].tolist() == [1, 1]
    assert target("f1", "m4")["voices"].tolist() == [] and target()["voices"].tolist() == []
    with torch.no_grad():
        objective.recognise.weight.copy_(torch.eye(2))
        objective.recognise.bias.zero_()
    halves = torch.tensor([[20.0, -20.0]] * 5 + [[-20.0, 20.0]] * 5)  # first m1, then f1
    one, both = torch.tensor([[20.0, -20.0]] * 10), [target("m1"), target("m1", "f1"), target("m4")]
    batch = TowerBatch([{}] * 3, Layout([layout] * 3), both, ["a", "b", "c"])
    right = _oracle_outcome(objective, torch.cat([one, halves, one]), batch).losses["voice"]
    wrong = _oracle_outcome(objective, torch.cat([halves, one, one]), batch).losses["voice"]
    assert right.count == wrong.count == 2 and right.total < 1e-3 < 10 < wrong.total
    nobody = TowerBatch([{}], Layout([layout]), [target("m4")], ["a"])
    assert _oracle_outcome(objective, one, nobody).losses["voice"].count == 0
    for features, share in ((torch.cat([one, halves, one]), 2), (torch.cat([halves, one, one]), 0)):
        total, count = _oracle_outcome(objective, features, batch).metrics["voices_right"]
        assert (int(total), count) == (share, 2)


def test_error_rates() -> None:
    errors = SpeechObjective(4)._errors(["one two", ""], ["one too", "six"])
    assert {name: (float(total), count) for name, (total, count) in errors.items()} == {"cer": (4, 10), "wer": (2, 3)}


def test_masks_touch_only_training_inputs() -> None:
    objective, item = SpeechObjective(4), {"input_features": torch.randn(80, 100)}
    seen: list[torch.Tensor] = []

    def encode(items: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        seen.append(items[0]["input_features"])
        return torch.zeros(50, 4)

    batch = TowerBatch([item], Layout([ItemLayout((50,), (16_000,))]), [{"labels": torch.tensor([1])}], ["a"])
    before = item["input_features"].clone()
    torch.manual_seed(0)
    objective.train()(encode, batch)
    objective.eval()(encode, batch)
    changed = (seen[0] != before).float().mean()
    assert 0 < changed < 0.6 and torch.equal(seen[1], before) and torch.equal(item["input_features"], before)


def _graph_batch(count: int, processor: GraphProcessor) -> TowerBatch:
    graphs = [Graph((f"hub {i}", f"leaf {i}", "shared"), torch.tensor([[1, 2], [0, 0]])) for i in range(count)]
    items, layouts = zip(*[processor(graph) for graph in graphs], strict=True)
    return TowerBatch(list(items), Layout(layouts), [{}] * count, [str(i) for i in range(count)])


def test_contrast_excludes_nodes_of_the_same_text() -> None:
    """With features that are the nodes' own texts, the shared text is no negative of itself."""
    processor = GraphProcessor(text_width=256, walk_length=2)
    batch = _graph_batch(4, processor)
    objective = TextGraphObjective(8, text_width=256, hidden_share=0.0, temperature=0.01).eval()
    texts = torch.cat([item["x"] for item in batch.items])
    objective.project = objective.text_tower = nn.Identity()
    outcome = objective(lambda items: texts, batch)
    assert float(outcome.losses["node_text"].total) / outcome.losses["node_text"].count < 0.7
    assert outcome.metrics["seen_text_top1"] == (12.0, 12) and outcome.metrics["hidden_text_top1"][1] == 0


def test_sampled_neighbours_are_neighbours() -> None:
    objective = TextGraphObjective(8, num_neighbours=2)
    batch = _graph_batch(2, GraphProcessor(text_width=16, walk_length=2))
    neighbours = objective._sample_neighbours(batch)
    assert sorted(neighbours[0].tolist()) == [1, 2] and neighbours[1].tolist() in ([0, -1], [-1, 0])
    assert sorted(neighbours[3].tolist()) == [4, 5]


def _recipe(kind: str) -> TowerRecipe:
    torch.manual_seed(1)
    if kind == "image":
        return TowerRecipe(tiny_vision(), DenseSceneObjective(16), warmup_steps=2)
    if kind == "audio":
        return TowerRecipe(SpeechEncoder({**TINY_WHISPER, "dropout": 0.1}), SpeechObjective(16), warmup_steps=2)
    encoder = GraphTransformerEncoder(16, 1, 2, text_width=64, walk_length=2)
    return TowerRecipe(encoder, TextGraphObjective(16, text_width=64), warmup_steps=2)


def _fit(kind: str, shards: str, root: Path, stop_after: int | None = None) -> TowerRecipe:
    """Eight steps over three batches per epoch, of which ``stop_after`` are run."""

    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            trainer.should_stop = stop_after is not None and trainer.global_step >= stop_after

    recipe = _recipe(kind)
    last = root / LAST_CHECKPOINT
    trainer = L.Trainer(
        default_root_dir=root,
        max_steps=8,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[Stop(), ResumePoint(stop_after or 1000)],
    )
    data = TowerData(shards, shards, batch_size=4, plan=recipe.plan())
    trainer.fit(recipe, data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    return recipe


@pytest.mark.parametrize("kind", ["image", "audio", "graph"])
def test_resumed_fit_equals_uninterrupted(tmp_path: Path, kind: str) -> None:
    """Interrupted in the middle of an epoch, with masks and dropout; the written tower holds every tensor."""
    shards = write_shards(tmp_path / "shards", kind, 13)
    whole = _fit(kind, shards, tmp_path / "whole")
    _fit(kind, shards, tmp_path / "parts", stop_after=4)
    resumed = _fit(kind, shards, tmp_path / "parts")
    assert resumed.global_step == whole.global_step == 8
    expected = whole.state_dict()
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, expected[name]), name
    tower = load_file(tmp_path / "parts" / TOWER_FILE)
    assert set(tower) == set(whole.encoder.state_dict())
    assert any(not torch.equal(value, _recipe(kind).encoder.state_dict()[name]) for name, value in tower.items())


def test_loader_covers_each_epoch_once_and_shards_by_rank() -> None:
    items = [TowerItem(str(i), {}, ItemLayout((1 + i % 5,), (1,)), {}) for i in range(22)]
    keys = [[key for batch in TowerLoader(items, 4, 0, rank, 2) for key in batch.keys] for rank in range(2)]
    assert len(keys[0]) == len(keys[1]) == 8 and len({*keys[0], *keys[1]}) == 16
    loader = TowerLoader(items, 4, 0)
    first, second = ([batch.keys for batch in loader] for _ in range(2))
    assert first != second and len({key for batch in first for key in batch}) == 20
    assert sum(len(batch.keys) for batch in TowerLoader(items, 4, None)) == 22


def test_undecodable_media_and_records_are_counted(tmp_path: Path) -> None:
    write_shards(tmp_path, "image", 6)
    path = next(tmp_path.glob("*.tar"))
    stream = io.BytesIO()
    with tarfile.open(path) as source, tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as target:
        for member in source:
            data = source.extractfile(member).read()
            if member.name in ("image_1.image.png", "image_4.json"):
                data = data[:50]
                member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    path.write_bytes(stream.getvalue())
    data = TowerData(str(tmp_path), str(tmp_path), batch_size=2, plan=_recipe("image").plan())
    data.setup("fit")
    assert [item.key for item in data.items["train"]] == ["image_0", "image_2", "image_3", "image_5"]
    with pytest.raises(ValueError, match=r"train: expected 9 items of image in .*, got 4"):
        TowerData(str(tmp_path), str(tmp_path), batch_size=9, plan=_recipe("image").plan()).setup("fit")


@pytest.mark.parametrize("kind", ["image", "audio", "graph"])
def test_mixed_precision_gives_nearly_the_same_losses(tmp_path: Path, kind: str) -> None:
    shards, recipe = write_shards(tmp_path, kind, 4), _recipe(kind).eval()
    data = TowerData(shards, shards, batch_size=4, plan=recipe.plan())
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    torch.manual_seed(0)
    exact = recipe._compare(batch).losses
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = recipe._compare(batch).losses
    sum(term.total / max(term.count, 1) for term in mixed.values()).backward()
    for name, term in exact.items():
        torch.testing.assert_close(mixed[name].total.float(), term.total, rtol=0.05, atol=0.05 * max(term.count, 1))
    assert all(p.grad.isfinite().all() for p in recipe.parameters() if p.grad is not None)


def test_width_of_the_objective_is_checked() -> None:
    with pytest.raises(ValueError, match="features of width 16, got 8"):
        TowerRecipe(tiny_vision(), DenseSceneObjective(8))
    with pytest.raises(ValueError, match="expected the plan of a TowerRecipe"):
        TowerData("a", "b")
    assert isinstance(_recipe("graph").plan(), TowerPlan)


def test_scene_objective_learns() -> None:
    """A few steps on three scenes bring every loss down."""
    recipe = _recipe("image").train()
    processor = recipe.encoder.processor
    rows = []
    for seed in range(3):
        record, data = scene(str(seed), seed)
        item, layout = processor(decode_media(record.media["image"], data))
        rows.append((item, layout, recipe.objective.target_rule(record, layout), str(seed)))
    items, layouts, targets, keys = map(list, zip(*rows, strict=True))
    batch = TowerBatch(items, Layout(layouts), targets, keys)
    optimizer = torch.optim.AdamW(recipe.parameters(), lr=5e-3)
    history = []
    for _ in range(30):
        losses = {name: term.total / term.count for name, term in recipe._compare(batch).losses.items()}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    assert all(history[-1][name] < 0.7 * history[0][name] for name in ("digit", "colour", "box", "centre"))
