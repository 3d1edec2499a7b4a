"""Features of frozen encoders: kept once, used again, the same training to the bit; never kept where they change."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import data.features
from data.features import FeatureShards, content_key
from encoders.graph import GraphTransformerEncoder
from encoders.speech import SpeechEncoder
from encoders.vision import TimmEncoder
from layers.layout import ItemLayout
from tests.tiny import tiny_config, training_arguments, write_shard
from train import main
from training.__main__ import main as training_main
from training.frozen_features import FrozenFeatures
from training.recipe import Recipe

TRAINED = ["^language_model", "^projectors", "^heads"]
KINDS = ["image", "audio", "graph"]
STEPS = 4


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("shards"))


def arguments(root: Path, shard: Path, folder: Path | None, **more: Any) -> list[str]:
    kept = {} if folder is None else {"features": {"folder": str(folder), "kinds": KINDS}}
    return training_arguments(root, shard, STEPS, trainable=TRAINED, **kept, **more)


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "checkpoint" / "model.safetensors")


def assert_same(root: Path, other: Path) -> None:
    found, wanted = weights(root), weights(other)
    assert [name for name, value in wanted.items() if not torch.equal(found[name], value)] == []


def forbid_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: Any) -> Any:
        raise AssertionError("an encoder ran")

    for encoder in (TimmEncoder, SpeechEncoder, GraphTransformerEncoder):
        monkeypatch.setattr(encoder, "forward", forward)


def test_training_is_the_same_without_features_with_new_ones_and_with_kept_ones(
    tmp_path: Path, shard: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(tmp_path / "without", shard, None))
    main(arguments(tmp_path / "new", shard, tmp_path / "features"))
    assert "image: 2 items, 2 of them new" in capsys.readouterr().out
    forbid_encoders(monkeypatch)
    main([*arguments(tmp_path / "kept", shard, tmp_path / "features"), "--data.init_args.num_workers=1"])
    assert "image: 2 items, 0 of them new" in capsys.readouterr().out
    assert_same(tmp_path / "new", tmp_path / "without")
    assert_same(tmp_path / "kept", tmp_path / "without")


def test_the_command_fills_them_ahead(
    tmp_path: Path, shard: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(tmp_path / "run", shard, tmp_path / "features")
    command = ["cache", "--config", given[-1]]
    assert training_main(command) == 0
    assert "graph: 2 items, 2 of them new" in capsys.readouterr().out
    forbid_encoders(monkeypatch)
    assert training_main(command) == 0
    assert "graph: 2 items, 0 of them new" in capsys.readouterr().out
    main(given)
    plain = arguments(tmp_path / "none", shard, None)
    assert training_main(["cache", "--config", plain[-1]]) == 2
    assert "model.init_args.features: expected a folder" in capsys.readouterr().err


def recipe(folder: Path, **arguments: Any) -> Recipe:
    given = {"trainable": TRAINED, "features": FrozenFeatures(str(folder / "features"), ["image"]), **arguments}
    return Recipe(generalist=tiny_config(folder), **given)


def test_what_changes_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"features\.kinds: expected frozen encoders, .*trains 'encoders\.image\."):
        recipe(tmp_path, trainable=["^encoders.image"]).plan()
    with pytest.raises(ValueError, match=r"features\.kinds: expected some of .*, got 'video'"):
        recipe(tmp_path, features=FrozenFeatures("x", ["video"])).plan()
    own = recipe(tmp_path)
    monkeypatch.setattr(type(own.plan().processors["image"]), "random", True, raising=False)
    with pytest.raises(ValueError, match=r"that of 'image' \(\w+\) augments at random"):
        own.plan()


LAYOUT = ItemLayout((2, 2), (8, 8))


def test_a_key_is_the_input_to_the_bit() -> None:
    image = {"pixel_values": torch.zeros(3, 8, 8), "scale": torch.tensor(2)}
    keys = {content_key(image, LAYOUT), content_key(image, replace(LAYOUT, tiles=(1, 2)))}
    changed = image["pixel_values"].clone()
    changed[0, 0, 0] = torch.nextafter(torch.zeros(()), torch.ones(()))
    keys |= {content_key({**image, "pixel_values": changed}, LAYOUT)}
    keys |= {content_key({**image, "pixel_values": torch.zeros(3, 4, 16)}, LAYOUT)}
    assert len(keys) == 4
    assert content_key(dict(reversed(image.items())), LAYOUT) == content_key(image, LAYOUT)


def test_shards_outlive_interruptions_and_are_shared(tmp_path: Path) -> None:
    first = FeatureShards(tmp_path, {"encoder": "a"}, 2**20)
    first.add("one", torch.ones(2, 3, dtype=torch.bfloat16))
    assert first.get("one") is not None and not list(tmp_path.glob("*.safetensors"))
    first.flush()
    (tmp_path / ".1234.safetensors").write_bytes(b"cut off")
    second = FeatureShards(tmp_path, {"encoder": "a"}, 2**20)
    assert len(second) == 1
    second.add("two", torch.zeros(1, 3))
    second.flush()
    first._looked = float("-inf")
    kept = first.get("one"), first.get("two")
    assert kept[0] is not None and torch.equal(kept[0], torch.ones(2, 3, dtype=torch.bfloat16))
    assert kept[1] is not None and first.get("three") is None
    with pytest.raises(ValueError, match="holds the features of another encoder"):
        FeatureShards(tmp_path, {"encoder": "b"}, 2**20)


def test_a_full_folder_or_disk_ends_the_writing_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = FeatureShards(tmp_path / "small", {}, 100)
    small.add("large", torch.zeros(100))
    small.flush()
    small.add("small", torch.zeros(1))
    assert (small.written, small.left_out) == (0, 2) and small.num_bytes == 0
    assert "takes no more items (more than 0.0 GiB); training goes on" in capsys.readouterr().out

    def save(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(data.features, "save_file", save)
    full = FeatureShards(tmp_path / "full", {}, 2**20)
    full.add("one", torch.zeros(1))
    full.flush()
    assert full.left_out == 1 and "No space left" in capsys.readouterr().out
