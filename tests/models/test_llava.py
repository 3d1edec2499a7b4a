"""LLaVA directories of transformers: converted, asked, exported; logits and generated ids are those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
)

from data.packing import pack
from data.records import Message, Part
from data.render import render_prompt
from inference.conversation import Conversation
from inference.session import Session
from models.__main__ import main as models_main
from models.checkpoint import save_checkpoint
from models.generalist import Generalist
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskTable
from tests.tiny import WORDS, tiny_config, tiny_generalist

SIDE = 24
NORM = ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
PINPOINTS = [[24, 48], [48, 24], [48, 48]]
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION |= {"image_size": SIDE, "patch_size": 8}
TEXT = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 0}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "eos_token_id": 1}
CLIP = VISION | {"model_type": "clip_vision_model", "projection_dim": 8}
SIGLIP = VISION | {"model_type": "siglip_vision_model", "vision_use_head": False}
KINDS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llava": (LlavaConfig, LlavaForConditionalGeneration, {"vision_config": CLIP}),
    "next": (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        {"vision_config": CLIP, "image_grid_pinpoints": PINPOINTS},
    ),
    "onevision": (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        {
            "vision_config": SIGLIP,
            "image_grid_pinpoints": PINPOINTS,
            "vision_aspect_ratio": "anyres_max_2",
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "text_config": TEXT | {"model_type": "qwen2", "tie_word_embeddings": True},
        },
    ),
}


def saved(kind: str, directory: Path) -> Any:
    """A tiny model with random weights, its tokenizer and its processor's settings, as transformers saves them."""
    config_class, model_class, arguments = KINDS[kind]
    tokenizer = train_tokenizer([WORDS] * 4, 300, TaskTable.from_dict({"tasks": []}))
    save_tokenizer(tokenizer, directory)
    text = {**arguments.get("text_config", TEXT), "vocab_size": len(tokenizer) + 5}  # padded, as released tables are
    config = config_class(**{**arguments, "text_config": text, "image_token_id": len(tokenizer)})
    torch.manual_seed(0)
    model = model_class(config).eval()
    for parameter in model.parameters():
        parameter.data *= 3  # far from uniform logits
    model.save_pretrained(directory)
    norm = {"image_mean": NORM[0], "image_std": NORM[1], "resample": 3}
    (directory / "preprocessor_config.json").write_text(json.dumps(norm))
    return model


def picture(width: int, height: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(width))


def inputs_of(generalist: Generalist, image: torch.Tensor, model: Any) -> dict[str, torch.Tensor]:
    """Their inputs for a question about the image, from our rendering: their image token where ours stands."""
    plan = generalist.plan()
    messages = [Message("user", (Part("image", media="a"), Part("text", text="where is the red 7 ?")))]
    rendered = render_prompt(messages, {"a": image}, plan)
    ids = torch.tensor([rendered.input_ids])
    ids[ids == plan.vocabulary.media_ids["image"]] = model.config.image_token_id
    encoder: Any = generalist.encoders["image"]
    pixels = encoder.normalise(rendered.media[0].inputs["pixel_values"])
    views = pixels[None]
    size = torch.tensor([[image.shape[1], image.shape[2]]])
    return {"input_ids": ids, "pixel_values": views} | ({} if views.ndim == 4 else {"image_sizes": size})


def our_logits(generalist: Generalist, image: torch.Tensor) -> torch.Tensor:
    plan = generalist.plan()
    messages = [Message("user", (Part("image", media="a"), Part("text", text="where is the red 7 ?")))]
    batch = pack([render_prompt(messages, {"a": image}, plan)], plan)
    encoded = generalist.encode_media(batch.media)["image"]
    embeds = generalist.place(generalist.embed(batch.input_ids[0]), batch.media["image"].positions, encoded.projected)
    states = generalist.language_model(embeds[None], batch.position_ids, batch.segment_lengths)
    return generalist.language_model.logits(states)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_replies_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    theirs = saved(kind, tmp_path / "theirs")
    assert models_main(["convert", "llava", str(tmp_path / "theirs"), "--out", str(tmp_path / "ours")]) == 0
    generalist = Generalist.from_pretrained(tmp_path / "ours")
    words = theirs.config.text_config.vocab_size - 5
    for size in ((24, 24), (60, 20), (21, 50)):
        image = picture(*size)
        inputs = inputs_of(generalist, image, theirs)
        with torch.no_grad():
            expected = theirs(**inputs).logits[0, :, :words]
            torch.testing.assert_close(our_logits(generalist, image)[:, :words], expected, atol=1e-4, rtol=0)
        session = Session(generalist, max_new_tokens=8)
        (reply,) = session.generate([Conversation.ask("where is the red 7 ?", images=[image])])
        suppressed = list(range(words, theirs.config.text_config.vocab_size))
        with torch.no_grad():
            ids = theirs.generate(**inputs, max_new_tokens=8, do_sample=False, suppress_tokens=suppressed)
        written = ids[0, inputs["input_ids"].shape[1] :].tolist()
        assert list(reply.token_ids) == (written[: written.index(1)] if 1 in written else written)


def test_several_images_are_not_cut_into_tiles_by_onevision(tmp_path: Path) -> None:
    """Their processor pads each of several images to a square, and closes it by one token."""
    theirs = saved("onevision", tmp_path / "theirs")
    assert models_main(["convert", "llava", str(tmp_path / "theirs"), "--out", str(tmp_path / "ours")]) == 0
    generalist = Generalist.from_pretrained(tmp_path / "ours")
    plan = generalist.plan()
    images = [picture(40, 24), picture(17, 30)]
    processor = LlavaOnevisionImageProcessor(
        size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS, image_mean=NORM[0], image_std=NORM[1]
    )
    pixels = processor([images], return_tensors="pt")
    parts = (Part("image", media="a"), Part("image", media="b"), Part("text", text="hello ?"))
    rendered = render_prompt([Message("user", parts)], {"a": images[0], "b": images[1]}, plan)
    ids = torch.tensor([rendered.input_ids])
    ids[ids == plan.vocabulary.media_ids["image"]] = theirs.config.image_token_id
    batch = pack([rendered], plan)
    words = theirs.config.text_config.vocab_size - 5
    with torch.no_grad():
        expected = theirs(input_ids=ids, **pixels).logits[0, :, :words]
        encoded = generalist.encode_media(batch.media)["image"]
        embeds = generalist.place(
            generalist.embed(batch.input_ids[0]), batch.media["image"].positions, encoded.projected
        )
        states = generalist.language_model(embeds[None], batch.position_ids, batch.segment_lengths)
    torch.testing.assert_close(generalist.language_model.logits(states)[:, :words], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_is_loaded_by_transformers(kind: str, tmp_path: Path) -> None:
    theirs = saved(kind, tmp_path / "theirs")
    paths = [str(tmp_path / name) for name in ("theirs", "ours", "back")]
    assert models_main(["convert", "llava", paths[0], "--out", paths[1]]) == 0
    assert models_main(["convert", "llava", paths[0], "--back", paths[1], "--out", paths[2]]) == 0
    again = AutoModelForImageTextToText.from_pretrained(paths[2])
    state = again.state_dict()
    assert set(state) == set(theirs.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in theirs.state_dict().items())


def test_a_model_with_other_parts_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved("llava", tmp_path / "theirs")
    save_checkpoint(tiny_generalist(tmp_path), tiny_config(tmp_path), tmp_path / "ours")
    paths = [str(tmp_path / name) for name in ("theirs", "ours", "back")]
    assert models_main(["convert", "llava", paths[0], "--back", paths[1], "--out", paths[2]]) == 2
    assert "expected an image tower and no heads, got ['audio', 'graph', 'image'" in capsys.readouterr().err


def test_tokens_of_a_task_table_come_along(tmp_path: Path) -> None:
    saved("llava", tmp_path / "theirs")
    (tmp_path / "tasks.yaml").write_text("tasks: [{name: stop, head: none, payload: []}]")
    arguments = ["convert", "llava", str(tmp_path / "theirs"), "--tasks", str(tmp_path / "tasks.yaml")]
    assert models_main([*arguments, "--out", str(tmp_path / "ours")]) == 2  # a task needs its head


DAMAGES = ("another model", "no weights", "cut weights", "a missing tensor", "a pickle", "another activation")


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_converted(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "theirs"
    saved("llava", source)
    config = json.loads((source / "config.json").read_text())
    weights = source / "model.safetensors"
    if damage == "another model":
        (source / "config.json").write_text(json.dumps({"model_type": "llama"}))
    elif damage == "another activation":
        (source / "config.json").write_text(json.dumps(config | {"projector_hidden_act": "relu"}))
    elif damage == "a missing tensor":
        kept = {name: value for name, value in load_file(weights).items() if "linear_1.bias" not in name}
        save_file(kept, weights, {"format": "pt"})
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        if damage == "a pickle":
            torch.save({"x": torch.zeros(1)}, source / "pytorch_model.bin")
        weights.unlink()
    assert models_main(["convert", "llava", str(source), "--out", str(tmp_path / "ours")]) == 2
    told = capsys.readouterr().err
    expected = {"another model": "got 'llama'", "another activation": "projector_hidden_act 'gelu', got 'relu'"}
    expected["a missing tensor"] = "missing 1 ["
    assert expected.get(damage, "error: ") in told and not (tmp_path / "ours").exists()
