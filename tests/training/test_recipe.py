"""The recipe through the real command line: resuming, loss normalisation, stages, errors."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from data.packing import merge_counts, pack
from layers.batch import Batch, Step
from layers.head import LossTerm
from models.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskTable
from tests.tiny import SAMPLES, WORDS, rendered, tiny_config, tiny_generalist, training_arguments, write_shard
from train import main
from training.init_from import InitFrom, load_weights
from training.recipe import Recipe


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "checkpoint" / "model.safetensors")


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("shards"))


def test_resumed_training_equals_uninterrupted(tmp_path: Path, shard: Path) -> None:
    muon = {r"^language_model\..*\.layers\.": 0.02}
    main(training_arguments(tmp_path / "whole", shard, 4, muon=muon))
    stopped = training_arguments(tmp_path / "halves", shard, 4, muon=muon)
    main([*stopped, "--trainer.limit_train_batches=2", "--trainer.max_epochs=1", "--model.init_args.export=null"])
    assert (tmp_path / "halves" / "last.ckpt").is_file()
    main(stopped)
    whole, halves = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    for name in ("tensorboard", "csv"):  # a resumed run adds a version to both logs
        assert {path.name for path in (tmp_path / "halves" / name).iterdir()} == {"version_0", "version_1"}


def test_training_changes_what_is_trainable_and_nothing_else(tmp_path: Path, shard: Path) -> None:
    torch.manual_seed(0)
    main(training_arguments(tmp_path / "run", shard, 2, trainable=["^projectors\\.", "^heads\\.boxes"], seed=3))
    trained = load_checkpoint(tmp_path / "run" / "checkpoint").state_dict()
    torch.manual_seed(0)
    again = training_arguments(tmp_path / "none", shard, 1, trainable=["^projectors\\."], learning_rate=0.0)
    main(again)
    initial = load_checkpoint(tmp_path / "none" / "checkpoint").state_dict()
    changed = {name.split(".")[0] for name in trained if not torch.equal(trained[name], initial[name])}
    assert changed == {"projectors", "heads"}


def objective_gradients(recipe: Recipe, packs: list[Batch]) -> dict[str, torch.Tensor]:
    counts = merge_counts(packs)
    recipe.generalist.zero_grad()
    for item in packs:
        recipe.objective(recipe.generalist(item), counts).backward()
    return {name: p.grad.clone() for name, p in recipe.generalist.named_parameters() if p.grad is not None}


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    """DESIGN's normalisation: one pack of four samples equals four packs of one, in float64 to 1e-9."""
    recipe = Recipe(generalist=tiny_config(tmp_path), trainable=["."])
    recipe.configure_model()
    recipe.generalist.double().train()
    plan = recipe.plan()
    samples = [rendered(name, plan) for name in ("text", "box", "mask", "node", "link", "audio", "box", "text")]
    once = objective_gradients(recipe, [pack(samples, plan)])
    often = objective_gradients(recipe, [pack([item], plan) for item in samples])
    for name, gradient in once.items():
        torch.testing.assert_close(often[name], gradient, rtol=1e-9, atol=1e-9)


def test_plan_without_weights_equals_the_models(tmp_path: Path) -> None:
    recipe = Recipe(generalist=tiny_config(tmp_path), trainable=["."])
    assert recipe.plan().hash == tiny_generalist(tmp_path).plan().hash


def test_each_kind_of_sample_trains_alone(tmp_path: Path) -> None:
    recipe = Recipe(generalist=tiny_config(tmp_path), trainable=["."])
    recipe.configure_model()
    plan = recipe.plan()
    for name in SAMPLES:
        gradients = objective_gradients(recipe, [pack([rendered(name, plan)], plan)])
        assert all(gradient.isfinite().all() for gradient in gradients.values()), name


class Snapshots(Callback):
    """The weights after every step."""

    def __init__(self) -> None:
        self.taken: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.taken.append({name: value.detach().clone() for name, value in pl_module.generalist.named_parameters()})


def fit(recipe: Recipe, steps: list[Step], root: Path, *callbacks: Callback) -> None:
    trainer = Trainer(
        max_steps=len(steps),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=root,
    )
    trainer.fit(recipe, DataLoader(steps, batch_size=None))


def test_an_optimizer_leaves_alone_what_no_pack_has_used(tmp_path: Path) -> None:
    """Muon gives a stale momentum the full length of a step: heads and projectors drifted while others learned."""
    muon = {r"^language_model\..*\.layers\.": 0.02, r"^projectors\.": 0.02, r"^heads\..*(layers|query|key)": 0.02}
    recipe = Recipe(generalist=tiny_config(tmp_path), trainable=["."], muon=muon, warmup_steps=0, export=None)
    plan = recipe.plan()
    packs = [[*SAMPLES], ["text"], ["text"], ["box"]]
    packed = [pack([rendered(name, plan) for name in names], plan) for names in packs]
    snapshots = Snapshots()
    fit(recipe, [Step([item], item.counts) for item in packed], tmp_path, snapshots)

    def changed(before: int, after: int) -> set[str]:
        first, second = snapshots.taken[before], snapshots.taken[after]
        return {".".join(name.split(".")[:2]) for name in first if not torch.equal(first[name], second[name])}

    assert changed(0, 2) == {"language_model.model"}
    assert changed(2, 3) == {"language_model.model", "encoders.image", "projectors.image", "heads.boxes"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["encoders"]["image"]["init_args"].update(strid=4), "strid"),
        (lambda c: c["heads"]["boxes"].update(class_path="heads.boxes.BoxHed"), "heads.boxes.BoxHed"),
        (lambda c: c["heads"]["masks"].update(class_path="os.system"), "os.system"),
        (lambda c: c["language_model"]["config"].update(vocab_size=100), "only 100 embedding rows"),
        (lambda c: c["tasks"]["tasks"][0].update(head="boxen"), "needs head 'boxen'"),
        (lambda c: c["projectors"].pop("audio"), "one projector per encoder"),
    ],
)
def test_a_wrong_config_is_one_clear_error(tmp_path: Path, change, message: str) -> None:
    config = tiny_config(tmp_path)
    change(config)
    with pytest.raises(ValueError, match=message):
        Recipe(generalist=config, trainable=["."]).configure_model()


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pattern 'enkoders' matches no parameter"):
        Recipe(generalist=tiny_config(tmp_path), trainable=["enkoders"]).configure_model()


def test_init_from_is_strict(tmp_path: Path) -> None:
    recipe = Recipe(generalist=tiny_config(tmp_path), trainable=["."], init_from=[InitFrom(str(tmp_path / "nowhere"))])
    with pytest.raises(CheckpointError, match=r"init_from\[0\] '.*nowhere': expected a safetensors file"):
        recipe.configure_model()
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"missing \['language_model.*unexpected or of another shape \['other'\]"):
        load_weights(tiny_generalist(tmp_path), InitFrom(str(tmp_path / "other.safetensors")))


def test_stages_with_other_tokens_are_refused(tmp_path: Path) -> None:
    """A row of another token would be taken for this one's: the shapes agree, so that nothing else would tell."""
    config = tiny_config(tmp_path)
    checkpoint = save_checkpoint(tiny_generalist(tmp_path), config, tmp_path / "stage1")
    config["tasks"]["tasks"][0]["name"] = "locate"
    tokenizer = train_tokenizer([WORDS], 400, TaskTable.from_dict(config["tasks"]))
    save_tokenizer(tokenizer, tmp_path / "renamed")
    config["tokenizer"] = str(tmp_path / "renamed")
    recipe = Recipe(generalist=config, trainable=["."], init_from=[InitFrom(str(checkpoint))])
    with pytest.raises(CheckpointError, match=r"init_from\[0\].*expected the tokens of .* has id .* here and .* there"):
        recipe.configure_model()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rates": {"^heads": 1e-3}}, r"learning_rates\['\^heads'\]: matches no parameter that is trained"),
        ({"muon": {"bias$": 1e-2}}, r"muon\['bias\$'\]: matches no parameter that is trained and is a matrix"),
        ({"trainable": []}, "init_args.trainable: expected patterns that leave something to train, got none"),
        ({"loss_weights": {"tokens": 1.0}}, r"init_args.loss_weights: expected some of .* got \['tokens'\]"),
    ],
)
def test_rates_and_weights_of_nothing_are_refused_before_anything_is_built(tmp_path: Path, arguments, message) -> None:
    recipe = Recipe(generalist=tiny_config(tmp_path), **{"trainable": ["^projectors"], **arguments})
    with pytest.raises(ValueError, match=message):
        recipe.plan()


class Teacher(Recipe):
    """Distillation, as the recipe's docstring promises: one small file that overrides what differs."""

    own_losses: ClassVar[dict[str, float]] = {"teacher": 0.5}

    def prepare(self) -> None:
        self.teacher = copy.deepcopy(self.generalist).requires_grad_(False).eval()
        with torch.no_grad():
            next(iter(self.teacher.parameters())).mul_(1.1)

    def pack_counts(self, pack: Batch) -> dict[str, int]:
        return pack.counts | {"teacher": sum(pack.segment_lengths)}

    def pack_losses(self, pack: Batch) -> dict[str, LossTerm]:
        embeds = self.generalist.embed(pack.input_ids)
        states = self.generalist.language_model(embeds, pack.position_ids, pack.segment_lengths)
        with torch.no_grad():
            wanted = self.teacher.language_model(embeds, pack.position_ids, pack.segment_lengths)
        own = LossTerm((states - wanted).square().mean(-1).sum(), len(states))
        return super().pack_losses(pack) | {"teacher": own}


class Seeded(Recipe):
    """Zeroth order: two losses and a seed, no gradient."""

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups)

    def update(self, batch: Step, counts: Mapping[str, float]) -> dict[str, torch.Tensor]:
        parameters = [p for p in self.generalist.parameters() if p.requires_grad]
        seed, losses = int(torch.randint(2**31, ())), []
        for scale in (1e-3, -2e-3, 1e-3):
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in parameters:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
                losses.append(sum(self.objective(self.pack_losses(pack), counts) for pack in batch.packs))
        generator = torch.Generator().manual_seed(seed)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator) * (losses[0] - losses[1]) / 2e-3
        self.optimize(batch)
        return {"token": losses[2].detach()}


@pytest.mark.parametrize("kind", [Teacher, Seeded])
def test_the_seams_hold_trainers_that_are_no_supervised_step(tmp_path: Path, kind: type[Recipe]) -> None:
    recipe = kind(generalist=tiny_config(tmp_path), trainable=["^language_model"], warmup_steps=0, export=None)
    plan, snapshots = recipe.plan(), Snapshots()
    packed = pack([rendered("text", plan)], plan)
    fit(recipe, [Step([packed], packed.counts)] * 2, tmp_path, snapshots)
    names = [name for name in snapshots.taken[0] if name.startswith("language_model")]
    assert all(snapshots.taken[1][name].isfinite().all() for name in names)
    assert any(not torch.equal(snapshots.taken[0][name], snapshots.taken[1][name]) for name in names)
