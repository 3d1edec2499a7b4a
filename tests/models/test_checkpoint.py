"""The checkpoint directory: identical logits in a fresh process, strictness, damage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from data.packing import pack
from models.checkpoint import MANIFEST, WEIGHTS, CheckpointError, file_sha256, load_checkpoint, save_checkpoint
from models.generalist import Generalist
from tests.tiny import SAMPLES, rendered, tiny_config, tiny_generalist


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = tiny_generalist(tmp_path)
    return save_checkpoint(model, tiny_config(tmp_path), tmp_path / "checkpoint", {"quickstart": "abc"})


def states(model: Generalist) -> torch.Tensor:
    plan = model.plan()
    batch = pack([rendered(name, plan) for name in SAMPLES], plan)
    with torch.no_grad():
        embeds = model.embed(batch.input_ids[0])
        for kind, item in model.encode_media(batch.media).items():
            embeds = model.place(embeds, batch.media[kind].positions, item.projected)
        return model.language_model(embeds[None], batch.position_ids, batch.segment_lengths)


def test_a_fresh_process_gives_identical_states(tmp_path: Path, saved: Path) -> None:
    expected = states(tiny_generalist(tmp_path).eval())
    code = (
        "import sys, torch; from tests.models.test_checkpoint import states;"
        "from models.generalist import Generalist;"
        "torch.save(states(Generalist.from_pretrained(sys.argv[1])), sys.argv[2])"
    )
    out = tmp_path / "states.pt"
    subprocess.run([sys.executable, "-c", code, str(saved), str(out)], check=True)
    torch.testing.assert_close(torch.load(out, weights_only=True), expected, rtol=0, atol=0)


def test_every_parameter_and_buffer_returns(tmp_path: Path, saved: Path) -> None:
    expected, got = tiny_generalist(tmp_path).state_dict(), load_checkpoint(saved).state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(value, got[name]) for name, value in expected.items())


def test_the_manifest_says_what_it_is(saved: Path) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    assert manifest["data"] == {"quickstart": "abc"}
    assert manifest["files"][WEIGHTS] == file_sha256(saved / WEIGHTS)
    assert set(manifest["tensors"]) == set(load_file(saved / WEIGHTS))


@pytest.mark.parametrize("name", [WEIGHTS, "config.yaml", "tasks.yaml", "tokenizer/tokenizer.json"])
def test_a_changed_byte_is_refused(saved: Path, name: str) -> None:
    data = bytearray((saved / name).read_bytes())
    data[len(data) // 2] ^= 1
    (saved / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"'{name}' was changed: expected sha256 .*, got"):
        load_checkpoint(saved)


def test_without_verification_a_truncated_file_is_still_refused(saved: Path) -> None:
    weights = saved / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="was changed: expected sha256"):
        load_checkpoint(saved)
    with pytest.raises(CheckpointError, match="the weights cannot be read"):
        load_checkpoint(saved, verify=False)


def test_loading_takes_the_files_own_pages(saved: Path) -> None:
    """Weights are views of the mapped file; tied ones stay one."""
    generalist = load_checkpoint(saved, verify=False)
    assert not any(parameter.is_meta for parameter in generalist.parameters())
    language_model = generalist.language_model.model
    assert language_model.get_input_embeddings().weight is language_model.get_output_embeddings().weight
    starts = [parameter.data_ptr() for parameter in generalist.parameters()]
    assert max(starts) - min(starts) < (saved / WEIGHTS).stat().st_size


def test_a_missing_file_and_a_stranger_are_refused(tmp_path: Path, saved: Path) -> None:
    (saved / "tasks.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"file .tasks\.yaml. is missing"):
        load_checkpoint(saved)
    with pytest.raises(CheckpointError, match=r"expected a checkpoint directory with manifest\.json"):
        load_checkpoint(tmp_path)


def rewrite(saved: Path, name: str) -> None:
    """Make the manifest agree with a changed file, as somebody who forges a checkpoint would."""
    manifest = json.loads((saved / MANIFEST).read_text())
    manifest["files"][name] = file_sha256(saved / name)
    (saved / MANIFEST).write_text(json.dumps(manifest))


def test_weights_of_another_model_are_refused(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS)
    first = sorted(tensors)[0]
    tensors["language_model.stranger"] = tensors.pop(first)
    save_file(tensors, saved / WEIGHTS)
    rewrite(saved, WEIGHTS)
    with pytest.raises(CheckpointError, match=f"missing 1 tensors .{first}.*unexpected 1 tensors .*stranger"):
        load_checkpoint(saved)


def test_another_shape_is_refused(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS)
    name = next(name for name, value in tensors.items() if value.ndim == 2)
    shape = tensors[name].shape
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, saved / WEIGHTS)
    rewrite(saved, WEIGHTS)
    with pytest.raises(CheckpointError, match=f"expected shape \\({shape[0]}, {shape[1]}\\)"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("language_model.forward", "language_model.embed"),
        ("language_model.model.model.norm.weight", "language_model.model.model.embed_tokens.weight"),
        ("language_model.stranger", "language_model.model.model.norm.weight"),
    ],
)
def test_a_manifest_shares_nothing_but_tensors_of_one_shape(saved: Path, alias: str, name: str) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    manifest["aliases"][alias] = name
    (saved / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=f"'{alias}' cannot share '{name}': expected tensors of one shape"):
        load_checkpoint(saved)


def test_a_planted_class_is_refused_before_it_is_imported(tmp_path: Path, saved: Path) -> None:
    module = tmp_path / "planted.py"
    module.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Encoder: pass\n")
    config = yaml.safe_load((saved / "config.yaml").read_text())
    config["encoders"]["image"]["class_path"] = "planted.Encoder"
    (saved / "config.yaml").write_text(yaml.safe_dump(config))
    rewrite(saved, "config.yaml")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ValueError, match=r"planted\.Encoder"):
            load_checkpoint(saved)
    finally:
        sys.path.remove(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_file_outside_the_checkpoint_is_refused(saved: Path) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    manifest["files"]["../outside"] = "0"
    (saved / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="lies outside"):
        load_checkpoint(saved)


def test_an_old_checkpoint_is_replaced_only_by_a_whole_one(tmp_path: Path, saved: Path) -> None:
    model = tiny_generalist(tmp_path, seed=1)
    save_checkpoint(model, tiny_config(tmp_path), saved)
    assert sorted(path.name for path in saved.parent.iterdir() if "checkpoint" in path.name) == ["checkpoint"]
    name = "language_model.model.model.embed_tokens.weight"
    assert torch.equal(load_checkpoint(saved).state_dict()[name], model.state_dict()[name])
