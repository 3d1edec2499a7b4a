"""LLaVA-1.5 as its authors store it, made from transformers' own: the same tensors under the other names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from models.__main__ import main as models_main
from models.generalist import Generalist
from tests.models.test_llava import inputs_of, our_logits, picture, saved


def original(theirs: Any, source: Path, folder: Path, *, pickled: bool) -> None:
    """Write the authors' layout: one folder for the language model and the projector, one for the tower."""
    (folder / "tower").mkdir(parents=True)
    theirs.model.vision_tower.save_pretrained(folder / "tower")
    settings = (source / "preprocessor_config.json").read_text()
    (folder / "tower" / "preprocessor_config.json").write_text(settings)
    (folder / "llava").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (source / name).is_file():
            (folder / "llava" / name).write_bytes((source / name).read_bytes())
    own = {"mm_vision_tower": "openai/clip", "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2}
    own |= {"model_type": "llava", "image_aspect_ratio": "pad", "mm_vision_select_feature": "patch"}
    (folder / "llava" / "config.json").write_text(json.dumps(theirs.config.text_config.to_dict() | own))
    language = {f"model.{n}": v for n, v in theirs.model.language_model.state_dict().items()}
    projector = theirs.model.multi_modal_projector
    language |= {f"model.mm_projector.0.{n}": v for n, v in projector.linear_1.state_dict().items()}
    rest = {f"model.mm_projector.2.{n}": v for n, v in projector.linear_2.state_dict().items()}
    rest["lm_head.weight"] = theirs.lm_head.weight.detach()
    rest["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    end = "bin" if pickled else "safetensors"
    index = {}
    for number, part in enumerate((language, rest), 1):
        name = f"{'pytorch_model' if pickled else 'model'}-0000{number}-of-00002.{end}"
        part = {key: value.clone().contiguous() for key, value in part.items()}
        torch.save(part, folder / "llava" / name) if pickled else save_file(part, folder / "llava" / name)
        index |= dict.fromkeys(part, name)
    name = "pytorch_model.bin.index.json" if pickled else "model.safetensors.index.json"
    (folder / "llava" / name).write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize("pickled", [False, True])
def test_logits_are_those_of_transformers(pickled: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = saved("llava", tmp_path / "theirs")
    original(theirs, tmp_path / "theirs", tmp_path, pickled=pickled)
    arguments = ["convert", "llava_original", str(tmp_path / "llava"), "--out", str(tmp_path / "ours")]
    assert models_main(arguments) == 2
    assert "expected the folder of 'openai/clip' (--tower), got none" in capsys.readouterr().err
    assert models_main([*arguments, "--tower", str(tmp_path / "tower")]) == 0
    generalist = Generalist.from_pretrained(tmp_path / "ours")
    words = theirs.config.text_config.vocab_size - 5
    for size in ((24, 24), (60, 20)):
        image = picture(*size)
        with torch.no_grad():
            expected = theirs(**inputs_of(generalist, image, theirs)).logits[0, :, :words]
        torch.testing.assert_close(our_logits(generalist, image)[:, :words], expected, atol=1e-4, rtol=0)
    encoder: Any = generalist.encoders["image"]
    pixels = encoder.processor(torch.zeros(3, 20, 60, dtype=torch.uint8))[0]["pixel_values"]
    assert pixels[:, 0, 0].tolist() == [int(255 * mean) for mean in (0.4, 0.5, 0.6)]  # the square's padding


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "expected one of ['llava', 'llava_llama'] with mm_vision_tower"),
        ({"mm_projector_type": "resampler"}, "mm_projector_type: expected one of ['linear', 'mlp2x_gelu']"),
        ({"hidden_size": 64}, "of another shape"),
    ],
)
def test_what_is_another_model(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = saved("llava", tmp_path / "theirs")
    original(theirs, tmp_path / "theirs", tmp_path, pickled=False)
    path = tmp_path / "llava" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    arguments = ["convert", "llava_original", str(tmp_path / "llava"), "--out", str(tmp_path / "ours")]
    assert models_main([*arguments, "--tower", str(tmp_path / "tower")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "ours").exists()


def test_a_shard_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = saved("llava", tmp_path / "theirs")
    original(theirs, tmp_path / "theirs", tmp_path, pickled=True)
    (tmp_path / "llava" / "pytorch_model-00002-of-00002.bin").unlink()
    arguments = ["convert", "llava_original", str(tmp_path / "llava"), "--out", str(tmp_path / "ours")]
    assert models_main([*arguments, "--tower", str(tmp_path / "tower")]) == 2
    assert "expected a shard that the index names, got none" in capsys.readouterr().err
