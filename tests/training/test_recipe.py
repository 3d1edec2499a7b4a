"""The recipe through the real command line: resuming, loss normalisation, stages, errors."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from data.packing import merge_counts, pack
from layers.batch import Batch, Step
from models.checkpoint import CheckpointError, load_checkpoint
from tests.tiny import SAMPLES, rendered, tiny_config, tiny_generalist, training_arguments, write_shard
from train import main
from training.recipe import InitFrom, Recipe, load_weights


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


def test_an_optimizer_leaves_alone_what_no_pack_has_used(tmp_path: Path) -> None:
    """Muon gives a stale momentum the full length of a step: heads and projectors drifted while others learned."""
    muon = {r"^language_model\..*\.layers\.": 0.02, r"^projectors\.": 0.02, r"^heads\..*(layers|query|key)": 0.02}
    recipe = Recipe(generalist=tiny_config(tmp_path), trainable=["."], muon=muon, warmup_steps=0, export=None)
    plan = recipe.plan()
    packs = [[*SAMPLES], ["text"], ["text"], ["box"]]
    packed = [pack([rendered(name, plan) for name in names], plan) for names in packs]
    snapshots = Snapshots()
    trainer = Trainer(
        max_steps=len(packs),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[snapshots],
        default_root_dir=tmp_path,
    )
    trainer.fit(recipe, DataLoader([Step([item], item.counts) for item in packed], batch_size=None))

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
    model = tiny_generalist(tmp_path)
    with pytest.raises(CheckpointError, match="expected a safetensors file or a checkpoint directory"):
        load_weights(model, InitFrom(str(tmp_path / "nowhere")))
